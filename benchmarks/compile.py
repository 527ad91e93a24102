"""Compile the Triton kernels for every family of GPU, on a machine without one, and print what came out.

python benchmarks/compile.py [--targets 80,90]

Real shapes, kernels not run: this shows that they compile, fit the shared memory, spill no registers (stack), and which
matrix instruction they use: mma (Ampere, Ada, consumer Blackwell), wgmma (Hopper), tcgen05 (datacenter Blackwell).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from turbodiffusion.ops.attention.kernels import sla as sla_triton
from turbodiffusion.ops.attention.kernels.tangent import attention_tangent
from turbodiffusion.ops.kernels import gpu
from turbodiffusion.ops.linear.kernels import gemm as gemm_triton
from turbodiffusion.ops.linear.kernels.quantize import quantize_blocks, quantize_per_token
from turbodiffusion.ops.norm.kernels.gate import add_gated
from turbodiffusion.ops.norm.kernels.qk_rope import norm_rope
from turbodiffusion.ops.norm.kernels.row_norm import row_norm
from turbodiffusion.ops.rounding import FP8

# Compute capability: bytes of shared memory that a program can have.
TARGETS = {80: 166912, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
TOKENS = 32760
EPS = 1e-6


class Absent:
    """A GPU of some kind, as far as the compiler asks."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def report(kernel: Any) -> str:
    """Registers, stack (spills), shared memory, and the matrix and copy instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{word}:(\d+)", usage)[0]) for word in ("REG", "STACK"))
    names = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync", "TMA": "cp.async.bulk.tensor"}
    used = [name for name, instruction in names.items() if instruction in kernel.asm["ptx"]]
    return f"{registers:>4} registers {stack:>4} stack {kernel.metadata.shared:>7} shared  {' '.join(used)}"


def product(x8: torch.Tensor, weight8: torch.Tensor, **fused: Any) -> None:
    scale, w_scale, bias = (torch.empty(size) for size in (x8.shape[0], weight8.shape[0], weight8.shape[0]))
    gemm_triton.gemm(x8, scale, weight8, w_scale, bias, **({"dtype": torch.bfloat16} | fused))


def calls(width: int, hidden: int, heads: int, formats: tuple[torch.dtype, ...]) -> Iterator[tuple[str, Any]]:
    """The kernels of a transformer block with this model width, by name."""
    low = torch.bfloat16
    x, h, w, weight = (torch.empty(s, dtype=low) for s in ((1, TOKENS, width), (TOKENS, hidden), (1, width), (width,)))
    for dtype in formats:
        kind = str(dtype).removeprefix("torch.")
        yield f"quantize {kind}", lambda dtype=dtype: quantize_per_token(x[0], dtype)
        yield f"quantize gelu {kind}", lambda dtype=dtype: quantize_per_token(h, dtype, gelu=True)
        yield f"norm {kind}", lambda dtype=dtype: row_norm(x, w, w, EPS, centre=True, one_plus=True, dtype=dtype)
        sizes = ((TOKENS, width), (hidden, width), (TOKENS, hidden), (width, hidden))
        x8, up, h8, down = (torch.empty(s, dtype=dtype) for s in sizes)
        after = {"gate_BN": torch.empty(1, width), "residual_MN": x[0]}
        yield f"product {kind}", lambda x8=x8, up=up: product(x8, up)
        yield f"product gelu {kind}", lambda x8=x8, up=up: product(x8, up, gelu=True)
        yield f"product gate {kind}", lambda h8=h8, down=down, after=after: product(h8, down, **after)
        in_float = after | {"residual_MN": x[0].float(), "dtype": torch.float32}
        yield f"product gate {kind} float", lambda h8=h8, down=down, after=in_float: product(h8, down, **after)
        batch = after | {"gate_BN": torch.empty(8, width)}
        yield f"product gates {kind}", lambda h8=h8, down=down, after=batch: product(h8, down, **after)
    yield "quantize blocks", lambda: quantize_blocks(x[0])
    yield (
        "product blocks",
        lambda: gemm_triton.gemm(
            torch.empty(TOKENS, width, dtype=torch.int8),
            torch.empty(-(-TOKENS // 128), width // 128),
            torch.empty(width, width, dtype=torch.int8),
            torch.empty(width // 128, width // 128),
            dtype=low,
        ),
    )
    yield "norm", lambda: row_norm(x, w, w, EPS, centre=True, one_plus=True, dtype=low)
    yield "rms norm", lambda: row_norm(x, weight, None, EPS, centre=False, one_plus=False, dtype=low)
    cos_sin = torch.empty(2, TOKENS, width // heads // 2)
    for block in (None, 128):
        yield f"norm rope {block or ''}", lambda block=block: norm_rope(x, weight, cos_sin, heads, EPS, block)
    yield "gate", lambda: add_gated(x, x, w)
    q, k, v = torch.empty(1, TOKENS, 3, heads, width // heads, dtype=low).unbind(2)
    proj = (torch.empty(width // heads, width // heads), torch.empty(width // heads), 0.1, 128, 64)
    if FP8 in formats:
        yield "sagesla", lambda: sla_triton.sagesla_attention(q, k, v, *proj, "int8")
    yield "tangent", lambda: attention_tangent(q, k, v, q, k, v)
    yield "sla", lambda: sla_triton.sla_attention(q, k, v, *proj)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--targets", default=",".join(map(str, TARGETS)), help="compute capabilities times ten, by comma"
    )
    chosen = parser.parse_args()
    run, failed = JITFunction.run, False
    compiled = []
    JITFunction.run = lambda *args, **kwargs: compiled.append(run(*args, **{**kwargs, "warmup": True}))
    for target in map(int, chosen.targets.split(",")):
        driver.set_active(Absent(target))
        gpu.capability = lambda _, target=target: divmod(target, 10)
        gpu.shared_memory = lambda _, target=target: TARGETS[target]
        gpu.multiprocessors = lambda _: 100
        formats = (torch.int8, FP8) if target >= 89 else (torch.int8,)
        for width, hidden, heads in ((1536, 8960, 12), (5120, 13824, 40)):
            for name, call in calls(width, hidden, heads, formats):
                compiled.clear()
                try:
                    call()
                    lines = [(kernel.metadata.name, report(kernel)) for kernel in compiled]
                    if any(kernel.metadata.shared > TARGETS[target] for kernel in compiled):
                        failed, lines = True, [*lines, ("", "TOO MUCH SHARED MEMORY")]
                except Exception as failure:
                    failed, lines = (
                        True,
                        [("", f"FAILED {type(failure).__name__}: {str(failure).splitlines()[0][:200]}")],
                    )
                for kernel, line in lines:
                    print(f"sm_{target:<4}{width:>5}  {name:<26} {kernel:<16} {line}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
