"""CUDA graphs: what they replay is what the launches give, bit for bit."""

from dataclasses import replace

import pytest
import torch

from turbodiffusion.config import ATTENTION_KINDS, LINEAR_KINDS, REFERENCE, TRITON, Kernels, WanConfig
from turbodiffusion.models.cuda_graphs import CudaGraphCache
from turbodiffusion.models.wan import WanTransformer

CONFIG = WanConfig(dim=128, ffn_dim=256, num_heads=2, num_layers=2, text_dim=32, text_len=16, sla_topk=0.3)


def double(x):
    return 2 * x


@pytest.mark.parametrize("warmup_calls", [0, 1, 4])
def test_calls_run_without_a_graph_until_they_are_repeated(graphs_by_hand, warmup_calls):
    graphs = CudaGraphCache()
    results = [graphs("double", double, torch.full((2,), float(k)), warmup_calls=warmup_calls) for k in range(7)]
    assert [x.tolist() for x in results] == [[2 * k, 2 * k] for k in range(7)]
    assert len(graphs) == len(graphs_by_hand) == 1
    for size in range(3, 3 + warmup_calls):  # each a key of its own
        graphs("double", double, torch.ones(size), warmup_calls=warmup_calls)
    assert len(graphs) == 1
    assert graphs("square", torch.square, torch.full((2,), 3.0), warmup_calls=0).tolist() == [9, 9]
    assert len(graphs) == 2
    graphs.clear()
    assert len(graphs) == 0
    graphs("double", double, torch.ones(2), warmup_calls=1)
    assert len(graphs) == 0  # counted anew


@pytest.mark.gpu
def test_results_are_kept_apart_and_keys_too():
    graphs = CudaGraphCache()
    ones = torch.ones(4, device="cuda")
    with torch.inference_mode():
        results = [graphs("double", double, k * ones) for k in range(5)]
        longer = [graphs("double", double, torch.ones(9, device="cuda")) for _ in range(3)]
        nested = [graphs("swap", lambda a, pair: (pair, (2 * a,)), ones, (ones + 1, 3 * ones)) for _ in range(3)]
    assert [x.tolist() for x in results] == [[2 * k] * 4 for k in range(5)]
    assert [x.tolist() for x in longer] == [[2] * 9] * 3
    for (b, c), (a,) in nested:
        assert (a.tolist(), b.tolist(), c.tolist()) == ([2] * 4, [2] * 4, [3] * 4)
    assert len(graphs) == 3
    graphs.clear()
    assert len(graphs) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", [REFERENCE, TRITON], ids=["reference", "triton"])
@pytest.mark.parametrize("linear", LINEAR_KINDS)
@pytest.mark.parametrize("attention", ATTENTION_KINDS)
def test_a_replayed_network_gives_what_the_launched_one_gives(attention: str, linear: str, kernels: Kernels):
    """At each time and for each prompt, also when RoPE's cache has long dropped this size."""
    torch.manual_seed(0)
    config = replace(CONFIG, attention_type=attention, quant_linear=linear, kernels=kernels)
    model = WanTransformer(config, device="cuda", dtype=torch.bfloat16).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    if kernels == TRITON:
        model.prepare()
    graphs = CudaGraphCache()
    with torch.inference_mode():
        for number in range(4):
            text = torch.randn(1, 16, 32, device="cuda")
            context = graphs("context", model.encode_context, text)
            for mine, launched in zip(context, model.encode_context(text), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine, launched, strict=True))
            for k in range(5):  # other sizes: RoPE's cache holds four
                model(torch.randn(1, 16, 1, 8, 4 + 2 * k, device="cuda"), torch.ones(1, device="cuda"), context)
            x = torch.randn(1, 16, 3, 16, 16, device="cuda")
            t = torch.full((1,), 900.0 - 200 * number, device="cuda")
            assert torch.equal(graphs("velocity", model, x, t, context), model(x, t, context))
    assert len(graphs) == 2
