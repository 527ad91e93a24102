"""`turbodiffusion doctor`: what this machine runs, and whether each kernel is right on it.

PyTorch is imported inside the command, so that `--help` is quick.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turbodiffusion.cli.console import StderrConsole, StdoutConsole
from turbodiffusion.cli.failures import check_memory_limit
from turbodiffusion.files import check_writable
from turbodiffusion.texts import text

if TYPE_CHECKING:
    from turbodiffusion.evaluation.result_file import Row
    from turbodiffusion.inference.doctor import Check
    from turbodiffusion.memory.plan import DeviceInfo

WIDE = 140  # columns of a terminal that has room for the whole table of kernels


def doctor(context: typer.Context, *, full: bool, report: Path | None) -> None:
    """Say what this machine runs, and check each kernel against its reference."""
    check_memory_limit()
    import torch

    from turbodiffusion.evaluation.result_file import Row, command_line, write_results
    from turbodiffusion.inference import doctor as room
    from turbodiffusion.inference.device import device_info

    if report is not None:
        check_writable(report)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = device_info(place)
    console = StdoutConsole()
    wide = console.width >= WIDE or not console.is_terminal  # a file's lines may be long
    _print_machine(console, here)
    reason = room.unsupported_reason(here)
    if reason is not None:
        console.print(str(text("doctor.references", device=place.type)))
        console.print(escape(str(text("doctor.for_speed", reason=reason))))
        if report is not None:
            words = f"the reference in PyTorch: {reason}"
            rows = [Row(f"kernels.{group}", 0.0, "kernels", "higher", None, words) for group in room.GROUPS]
            write_results(report, rows, command_line())
            console.print(escape(str(text("doctor.wrote", path=report))), soft_wrap=True)
        return
    with StderrConsole().status(str(text("doctor.checking"))) as status:
        checks = room.check_kernels(
            place, quick=not full, on_check=lambda check: status.update(str(text("doctor.checked", op=check.op)))
        )
    room.remember(here, checks)
    # A console of its own: `print(width=...)` only narrows.
    paper = StdoutConsole(width=max(console.width, WIDE)) if wide else console
    paper.print(table_of(checks, wide=wide))
    if not wide:
        console.print(f"[dim]{text('doctor.more', columns=WIDE)}[/]")
    chosen = room.kernels_of(checks)
    console.print(str(text("doctor.runs", kernels=[f"{group} {impl}" for group, impl in vars(chosen).items()])))
    wrong = room.problems(checks)
    for line in wrong:
        console.print(f"[red]{text('doctor.wrong')}[/] {escape(line)}", soft_wrap=True)
    if report is not None:
        write_results(report, rows_of(checks), command_line())
    if wrong:
        raise typer.Exit(1)


def _print_machine(console: Console, here: "DeviceInfo") -> None:
    from turbodiffusion.evaluation.result_file import cpu_name

    table = Table.grid(padding=(0, 2))
    if here.gpu is None:
        table.add_row(f"[bold]{text('doctor.processor')}[/]", escape(cpu_name()))
        table.add_row("[bold]GPU[/]", str(text("doctor.no_gpu")))
    else:
        capability = ".".join(map(str, here.capability or ()))
        gpu = text("doctor.gpu", name=here.gpu, gib=here.total / 2**30, capability=capability)
        table.add_row("[bold]GPU[/]", escape(str(gpu)))
        table.add_row(f"[bold]{text('doctor.driver')}[/]", escape(here.driver))
    table.add_row("[bold]PyTorch[/]", str(text("doctor.versions", **here.versions)))
    console.print(table)


def table_of(checks: Sequence["Check"], *, wide: bool) -> Table:
    """A row for each kernel; times only where they were taken, shape and why it was chosen only if `wide`."""
    timed = any(check.ms is not None for check in checks)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(str(text("doctor.op")), no_wrap=True)
    table.add_column(str(text("doctor.runs_as")), no_wrap=True)
    for title in (
        text("doctor.relative_error"),
        text("doctor.allowed"),
        *(("ms", text("doctor.limit")) if timed else ()),
    ):
        table.add_column(str(title), justify="right", no_wrap=True)
    for title in (text("doctor.shape"), text("doctor.why")) if wide else ():
        table.add_column(str(title), overflow="fold")
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
    return str(text("doctor.none")) if math.isnan(value) else f"{value:.1e}" if short else f"{value:.4e}"


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
