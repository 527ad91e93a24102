"""What the scripts in benchmarks/ make and read, at sizes for a CPU; what they time needs a GPU."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from turbodiffusion.cli import bench, progress
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.evaluation import result_file as results
from turbodiffusion.inference.result import Result
from turbodiffusion.request import Request


@pytest.fixture(scope="module")
def end_to_end():
    if not bench.BENCHMARKS.is_dir():
        pytest.skip("no checkout")
    return bench._script(bench.BENCHMARKS / "end_to_end.py")


def test_random_weights_make_a_video_that_is_finite_and_not_flat(end_to_end, tmp_path):
    from turbodiffusion.inference.pipeline import Pipeline

    end_to_end.make_weights(
        tmp_path / "weights",
        WanConfig(
            dim=128, ffn_dim=256, num_heads=2, num_layers=4, text_dim=32, round_time_to_bf16=True, attention_type="sla"
        ),
        VAEConfig(dim=16),
        TextConfig(d_model=32, num_layers=2, num_heads=2, d_kv=16, d_ff=64, vocab_size=4096),
        "cpu",
        {"sampler": "rcm", "num_steps": 2, "sigma_max": 80.0, "resolution": "64x64", "num_frames": 5},
    )
    pipeline = Pipeline.load(str(tmp_path / "weights"), device="cpu")
    frames = pipeline.generate(Request(end_to_end.PROMPT.format(1), seed=1)).frames.astype(np.float32)
    assert frames.shape == (5, 64, 64, 3)
    assert 1 < frames.std() < 60 and frames[1:].std() > 1


def test_the_scripts_aim_at_the_targets_of_the_result_file(end_to_end, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    expected = bench._script(bench.BENCHMARKS / "targets.py").REQUIRED["h200.json"]
    attention = bench._script(bench.BENCHMARKS / "attention.py")
    assert set(attention.HEADLINES) < set(expected) and end_to_end.PEAK in expected
    forwards = [f"{slow}.{end_to_end.MODEL}.forward_ms" for slow in ("original", "tuned")]
    diffusions = [f"e2e.{end_to_end.MODEL}.{steps}steps.denoise_s" for steps in (4, 2)]
    rows = [results.Row(name, 1.0, "", "lower", None, "a clock") for name in forwards + diffusions]
    results.write_results(tmp_path / "h200.json", rows, "a test")
    speedups = end_to_end.speedup_rows(rows, tmp_path / "h200.json")
    assert len(speedups) == 3 and all(row.target == expected[row.name].target for row in speedups)


def test_filled_weights_keep_the_size_of_activations(end_to_end):
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
    out = end_to_end.fill(model)(torch.randn(64, 256))
    assert 0.7 < out.std() < 1.4


def test_the_stages_of_a_cold_process_are_read_from_what_it_prints(end_to_end):
    spent = {"load": 1.2, "text_encode": 0.3, "denoise": 12.0, "vae_decode": 0.5, "mp4_encode": 0.0}
    request = Request("a cat (of 2.5 years, large)", num_steps=4, seed=3)
    result = Result(request, np.zeros((5, 16, 16, 3), np.uint8), b"", "cat.mp4", spent, ())
    log = io.StringIO()
    Console(file=log, width=40).print(progress.summary(result, 15.2), soft_wrap=True)
    found = end_to_end.printed_stages("load 3/3\ndone nothing\n" + log.getvalue())
    assert found == pytest.approx(spent)
