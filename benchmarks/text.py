"""The text encoder, umT5-XXL at its real size with random weights, on one GPU.

python benchmarks/text.py [--out FILE.json] [--layers 24]

First the check: prompt embeds in bfloat16 must not be further from float32 than 1.1 times those of transformers' own.
The weights are spread as transformers spreads them: under larger ones attention without 1 / sqrt(D) saturates, every
rounding grows to the size of the prompt embeds, and the comparison says nothing.
Then the times, of calls as the pipeline makes them (the third of a length on, which replay a CUDA graph), wall clock
with the GPU waited for, median of 20.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.targets import target
from turbodiffusion.config import TextConfig
from turbodiffusion.evaluation.result_file import Row, write_results
from turbodiffusion.models.text import TextEncoder
from turbodiffusion.ops.cases import OF_THE_EMULATION, error

TOKENS = (512, 256, 128, 64)
BOUND = 0.05  # of any encoder in bfloat16, so that two that are wrong do not pass
PEERS: dict[torch.dtype, Any] = {}


def inputs(tokens: int, config: TextConfig) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, config.vocab_size, (1, config.text_len), device="cuda")
    return ids, (torch.arange(config.text_len, device="cuda") < tokens).long()[None]


def milliseconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(25):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def theirs(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """transformers' own forward over the same weights, always at the full length."""
    return peer(encoder).encoder(inputs_embeds=encoder.shared(ids), attention_mask=mask).last_hidden_state


def peer(encoder: TextEncoder) -> Any:
    """transformers' UMT5EncoderModel around the encoder's own tensors; built once for each dtype."""
    dtype = encoder.shared.weight.dtype
    if dtype not in PEERS:
        PEERS.clear()
        config = encoder.config
        sizes = {name: getattr(config, name) for name in ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")}
        with torch.device("meta"):
            model = UMT5EncoderModel(UMT5Config(vocab_size=config.vocab_size, dropout_rate=0.0, **sizes))
        model.load_state_dict(encoder.state_dict(), strict=False, assign=True)
        PEERS[dtype] = model.eval().requires_grad_(False)
    return PEERS[dtype]


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a result file; rows that are in it and not measured now stay")
    parser.add_argument("--layers", type=int, default=24, help="fewer are no umT5-XXL: a try of this script")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("an NVIDIA GPU is needed")
    config = TextConfig(num_layers=chosen.layers)
    torch.manual_seed(0)
    encoder = TextEncoder(config, device="cuda", dtype=torch.bfloat16).eval().requires_grad_(False)

    rows, outputs = [], {}
    for tokens in TOKENS:
        ids, mask = inputs(tokens, config)
        for _ in range(3):  # plain, captured, replayed
            prompt_embeds = encoder(ids, mask)
        outputs[tokens] = ids, mask, prompt_embeds[:, :tokens], theirs(encoder, ids, mask)[:, :tokens]
        ms = milliseconds(lambda ids=ids, mask=mask: encoder(ids, mask))
        name = f"text.{tokens}.ms"
        method = f"umT5-XXL, {chosen.layers} layers, bfloat16, batch 1, CUDA graph, wall clock, median of 20"
        rows.append(Row(name, ms, "ms", "lower", target(name) if chosen.layers == 24 else None, method))
    ids, mask = inputs(512, config)
    for name, run in (("eager", encoder._encode), ("transformers", lambda *x: theirs(encoder, *x))):
        ms = milliseconds(lambda run=run: run(ids, mask))
        rows.append(Row(f"text.512.{name}.ms", ms, "ms", "lower", None, "without a graph, median of 20"))

    wrong = False
    encoder.float()
    for tokens, (ids, mask, ours, peers) in outputs.items():
        exact = theirs(encoder, ids, mask)[:, :tokens]
        off, allowed = error(ours, exact), min(BOUND, OF_THE_EMULATION * error(peers, exact))
        wrong |= not off <= allowed
        method = "relative L2 against float32; allowed are 1.1 times transformers' own in bfloat16, and 5%"
        rows.append(Row(f"text.{tokens}.error", off, "relative L2", "lower", allowed, method))
    for row in rows:
        goal = "" if row.target is None else f"<= {row.target:.4g}"
        print(f"{'MISS' if row.misses else '    '} {row.name:<28} {row.value:10.4g} {row.unit:<12} {goal}", flush=True)
    if chosen.out:
        write_results(chosen.out, rows, "python " + " ".join(sys.argv), keep=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
