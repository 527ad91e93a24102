"""`turbodiffusion doctor | bench | warmup`: whether this machine is right, how fast it is, and its caches filled.

PyTorch is imported inside the commands, so that `--help` is quick.
"""

import importlib.util
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turbodiffusion.errors import MachineError, RequestError

if TYPE_CHECKING:
    from turbodiffusion.evaluation.result_file import Row
    from turbodiffusion.inference.doctor import Check
    from turbodiffusion.memory.plan import DeviceInfo

# The scripts of a checkout that measure; they are no part of the installed package.
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = {
    "ops": ("ops.py", "attention.py"),
    "forward": ("forward.py",),
    "stages": ("vae.py", "text.py"),
    "end-to-end": ("end_to_end.py",),
}
WIDE = 140  # columns of a terminal that has room for the whole table of kernels
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.", metavar="NAME")]


def doctor(
    full: Annotated[bool, typer.Option("--full", help="Real shapes too, and how fast each kernel is.")] = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write a result file.", metavar="FILE", show_default=False)
    ] = None,
) -> None:
    """Say what this machine runs, and check each kernel against its reference.

    Exit code 1: a kernel is wrong here; what it belongs to runs as PyTorch reference then. CUDA_VISIBLE_DEVICES names
    another GPU than the first.
    """
    import torch

    from turbodiffusion.evaluation.result_file import Row, command_line, write_results
    from turbodiffusion.inference import doctor as room
    from turbodiffusion.inference.device import device_info

    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = device_info(place)
    console = Console(highlight=False)
    wide = console.width >= WIDE or not console.is_terminal  # a file's lines may be long
    _print_machine(console, here)
    reason = room.unsupported_reason(here)
    if reason is not None:
        console.print(f"Here the references in PyTorch run, on the {place.type}: right, and slow.")
        console.print(f"For speed {escape(reason)}; the demo model needs none.")
        if json is not None:
            words = f"the reference in PyTorch: {reason}"
            rows = [Row(f"kernels.{group}", 0.0, "kernels", "higher", None, words) for group in room.GROUPS]
            write_results(json, rows, command_line())
            console.print(f"wrote {escape(str(json))}: versions, and that no kernel was checked", soft_wrap=True)
        return
    with Console(stderr=True).status("compiling and checking") as status:
        checks = room.check_kernels(
            place, quick=not full, on_check=lambda check: status.update(f"compiling and checking: {check.op} done")
        )
    room.remember(here, checks)
    # A console of its own: `print(width=...)` only narrows.
    paper = Console(highlight=False, width=max(console.width, WIDE)) if wide else console
    paper.print(table_of(checks, wide=wide))
    if not wide:
        console.print(f"[dim]shapes and reasons: in a terminal of {WIDE} columns, or with --json FILE[/]")
    chosen = room.kernels_of(checks)
    console.print("runs here: " + ", ".join(f"{group} {impl}" for group, impl in vars(chosen).items()))
    wrong = room.problems(checks)
    for line in wrong:
        console.print(f"[red]wrong:[/] {escape(line)}", soft_wrap=True)
    if json is not None:
        write_results(json, rows_of(checks), command_line())
    if wrong:
        raise typer.Exit(1)


def _print_machine(console: Console, here: "DeviceInfo") -> None:
    from turbodiffusion.evaluation.result_file import cpu_name

    table = Table.grid(padding=(0, 2))
    if here.gpu is None:
        table.add_row("[bold]processor[/]", escape(cpu_name()))
        table.add_row("[bold]GPU[/]", "none that PyTorch can use")
    else:
        capability = ".".join(map(str, here.capability or ()))
        table.add_row("[bold]GPU[/]", f"{escape(here.gpu)}, {here.total / 2**30:.0f} GiB, capability {capability}")
        table.add_row("[bold]driver[/]", escape(here.driver))
    table.add_row("[bold]PyTorch[/]", "{torch}, CUDA {cuda}, Triton {triton}".format(**here.versions))
    console.print(table)


def table_of(checks: Sequence["Check"], *, wide: bool) -> Table:
    """A row for each kernel; times only where they were taken, shape and why it was chosen only if `wide`."""
    timed = any(check.ms is not None for check in checks)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("op", no_wrap=True)
    table.add_column("runs as", no_wrap=True)
    for title in ("error", "allowed", *(("ms", "limit") if timed else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("shape", "why") if wide else ():
        table.add_column(title, overflow="fold")
    for check in checks:
        colour = "" if check.right else "[red]"
        times = ["" if check.ms is None else f"{check.ms:.3f}", "" if check.share is None else f"{check.share:.0%}"]
        table.add_row(
            f"{colour}{check.op}",
            check.implementation if check.right else f"{colour}reference",
            f"{colour}{_number(check.error, check.right)}",
            _number(check.bound, check.right),
            *(times if timed else ()),
            *((check.shape, escape(check.why)) if wide else ()),
        )
    return table


def _number(value: float, short: bool) -> str:
    """With three digits more where they tell that the bound is missed."""
    return "none" if math.isnan(value) else f"{value:.1e}" if short else f"{value:.4e}"


def rows_of(checks: Sequence["Check"]) -> list["Row"]:
    """The checks as rows of a result file: each error with its bound as target, times and rates where taken."""
    from turbodiffusion.evaluation.result_file import Row

    rows = []
    for check in checks:
        name = f"{check.op}.{check.shape.split(', ', 1)[1]}"
        error = None if math.isnan(check.error) else check.error
        method = f"{check.shape}; {check.why}"
        rows.append(Row(f"{name}.error", error, "relative L2", "lower", check.bound, method))
        if check.ms is not None and check.rate is not None:
            rows.append(Row(f"{name}.ms", check.ms, "ms", "lower", None, method))
            rows.append(Row(f"{name}.{check.unit}", check.rate, check.unit, "higher", None, method))
    return rows


def bench(
    context: typer.Context,
    group: Annotated[str | None, typer.Argument(help="ops, forward, stages or end-to-end.", show_default=False)] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="Print the rows that miss their target.", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """Measure this machine, or read what was measured. Other options go to the scripts in benchmarks/.

    turbodiffusion bench ops --out benchmarks/results/h200.json

    turbodiffusion bench --check benchmarks/results/h200.json
    """
    if (group is None) == (check is None):
        raise RequestError(f"give a group ({', '.join(SCRIPTS)}), or --check with a result file")
    if check is not None:
        _check_file(check)
        return
    if group not in SCRIPTS:
        raise RequestError(f"bench has no group {group!r}: there are {', '.join(SCRIPTS)}")
    import torch

    from turbodiffusion.inference import doctor as room
    from turbodiffusion.inference.device import device_info

    absent = [script for script in SCRIPTS[group] if not (BENCHMARKS / script).is_file()]
    if absent:
        raise RequestError(
            f"{', '.join(absent)}: the scripts that measure are in benchmarks/ of a checkout, not in the installed "
            "package; clone the repository, or use `turbodiffusion doctor --full` for the kernels alone"
        )
    # The scripts would say so too, but after their usage, or after asking for what they need on a GPU.
    reason = room.unsupported_reason(device_info("cuda" if torch.cuda.is_available() else "cpu"))
    if reason is not None and not {"-h", "--help"} & set(context.args):
        raise MachineError(
            f"bench {group} measures kernels, and {reason}; here `turbodiffusion doctor` says what runs, and "
            "`turbodiffusion bench --check FILE` reads what was measured elsewhere"
        )
    codes = [_script(BENCHMARKS / script).main(context.args) for script in SCRIPTS[group]]
    if any(codes):
        raise typer.Exit(1)


def _check_file(path: Path) -> None:
    """Print the rows that miss, one a line; exit code 1 if there is one."""
    from turbodiffusion.evaluation import result_file as results

    missed = results.check(path)
    for row in missed:
        value = "missing" if row.value is None else f"{row.value:.4g} {row.unit}".strip()
        print(f"{row.name}: {', '.join(filter(None, (value, row.goal)))} ({row.method})")
    rows = results.read_results(path)
    Console(stderr=True, highlight=False).print(f"{len(rows)} rows, {len(missed)} miss")
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
    model: Annotated[str, typer.Option("--model", help="Name, folder or file.", metavar="NAME")] = "demo",
    image: Annotated[
        Path | None, typer.Option("--image", help="For image-to-video models.", metavar="FILE", show_default=False)
    ] = None,
    resolution: Annotated[
        str | None, typer.Option("--resolution", help="480p, 720p or WxH.", metavar="SIZE", show_default=False)
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", help="As you will ask for.", metavar="N", show_default=False)
    ] = None,
    device: DeviceName = "auto",
    offload_text: Annotated[
        str, typer.Option("--offload-text", help="As you will ask for: auto, on, off.", metavar="WHEN")
    ] = "auto",
    max_memory: Annotated[
        float | None, typer.Option("--max-memory", help="As you will ask for.", metavar="N", show_default=False)
    ] = None,
) -> None:
    """Compile what a model needs: load it, run one step of one video, twice. Nothing is written but the caches.

    The second run is what a step costs from now on, in this process; a new process starts from the caches. Where the
    memory allows CUDA graphs, later ones cost a little less.
    """
    from turbodiffusion.inference.pipeline import Pipeline
    from turbodiffusion.request import Request

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    words: dict[str, Any] = {"image": image, "resolution": resolution, "num_frames": num_frames, "num_steps": 1}
    requests = [Request("a red balloon rises over a green meadow", **words, seed=seed) for seed in (1, 2)]
    pipeline = Pipeline.load(
        model, device=device, offload_text=offload_text, max_memory=max_memory, requests=requests[:1]
    )
    cold, warm = (pipeline.generate(request).seconds for request in requests)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("seconds")
    table.add_column("first", justify="right")
    table.add_column("then", justify="right")
    for stage in cold:
        table.add_row(stage, f"{cold[stage]:.2f}", f"{warm.get(stage, 0.0):.2f}")
    table.add_row("[bold]all[/]", f"{sum(cold.values()):.2f}", f"{sum(warm.values()):.2f}")
    Console(highlight=False).print(table)
