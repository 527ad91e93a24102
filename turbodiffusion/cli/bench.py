"""`turbodiffusion bench | warmup`: how fast this machine is, and its caches filled.

PyTorch is imported inside the commands, so that `--help` is quick.
"""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from turbodiffusion.cli.console import StderrConsole, StdoutConsole
from turbodiffusion.cli.failures import check_memory_limit
from turbodiffusion.cli.options import check_device
from turbodiffusion.cli.progress import stage_label
from turbodiffusion.errors import MachineError, RequestError
from turbodiffusion.request import Request
from turbodiffusion.texts import text

# The scripts of a checkout that measure; they are no part of the installed package.
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = {
    "ops": ("ops.py", "attention.py"),
    "forward": ("forward.py",),
    "stages": ("vae.py", "text.py"),
    "end-to-end": ("end_to_end.py",),
}


def bench(context: typer.Context, *, group: str | None, check: Path | None) -> None:
    """Measure this machine, or read what was measured. Other options go to the scripts in benchmarks/."""
    if (group is None) == (check is None):
        raise RequestError("bench.group_or_check", groups=list(SCRIPTS))
    if check is not None:
        _check_file(check)
        return
    if group not in SCRIPTS:
        raise RequestError("bench.no_group", name=group, groups=list(SCRIPTS))
    import torch

    from turbodiffusion.inference import doctor as room
    from turbodiffusion.inference.device import device_info

    absent = [script for script in SCRIPTS[group] if not (BENCHMARKS / script).is_file()]
    if absent:
        raise RequestError("bench.no_scripts", scripts=absent)
    # The scripts would say so too, but after their usage, or after asking for what they need on a GPU.
    reason = room.unsupported_reason(device_info("cuda" if torch.cuda.is_available() else "cpu"))
    if reason is not None and not {"-h", "--help"} & set(context.args):
        raise MachineError("bench.no_kernels", group=group, reason=reason)
    codes = [_script(BENCHMARKS / script).main(context.args) for script in SCRIPTS[group]]
    if any(codes):
        raise typer.Exit(1)


def _check_file(path: Path) -> None:
    """Print the rows that miss, one a line; exit code 1 if there is one."""
    from turbodiffusion.evaluation import result_file as results

    targets = BENCHMARKS / "targets.py"
    known = _script(targets).REQUIRED.get(path.name) if targets.is_file() else None
    missed = results.check(path, None if known is None else [*known.values()])
    for row in missed:
        value = str(text("bench.missing")) if row.value is None else f"{row.value:.4g} {row.unit}".strip()
        print(f"{row.name}: {', '.join(filter(None, (value, row.goal)))} ({row.method})")
    rows = results.read_results(path)
    StderrConsole().print(str(text("bench.checked", rows=len(rows), missed=len(missed))))
    if missed:
        raise typer.Exit(1)


def _script(path: Path) -> Any:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def warmup(
    context: typer.Context,
    *,
    model: str | None,
    image: Path | None,
    resolution: str | None,
    num_frames: int | None,
    device: str,
    offload_text: str,
    max_memory: float | None,
) -> None:
    """Compile what a model needs: load it, run one step of one video, twice. Nothing is written but the caches."""
    check_device(device)
    check_memory_limit()
    fields: dict[str, Any] = {"image": image, "resolution": resolution, "num_frames": num_frames, "num_steps": 1}
    requests = [Request("a red balloon rises over a green meadow", **fields, seed=seed) for seed in (1, 2)]
    from turbodiffusion.inference.pipeline import Pipeline

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    pipeline = Pipeline.load(
        "demo" if model is None else model,
        device=device,
        offload_text=offload_text,
        max_memory=max_memory,
        requests=requests[:1],
    )
    cold, warm = (pipeline.generate(request).seconds for request in requests)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(str(text("bench.seconds")))
    table.add_column(str(text("bench.first")), justify="right")
    table.add_column(str(text("bench.then")), justify="right")
    for stage in cold:
        table.add_row(stage_label(stage), f"{cold[stage]:.2f}", f"{warm.get(stage, 0.0):.2f}")
    table.add_row(f"[bold]{text('bench.all')}[/]", f"{sum(cold.values()):.2f}", f"{sum(warm.values()):.2f}")
    StdoutConsole().print(table)
