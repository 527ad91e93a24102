"""Result files: what a benchmark or an evaluation measured, on what, and whether it reaches its target.

One JSON each under benchmarks/results: {"device", "versions", "commit", "date", "command", "rows": [{"name", "value",
"unit", "better", "target", "method"}]}. Charts and tables in the docs are made from these files.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from turbodiffusion.errors import UserError
from turbodiffusion.files import read_file, write_file

PACKAGES = ("turbodiffusion", "torch", "numpy", "transformers", "triton")
FACTORS = ("subject", "colour", "motion", "scene")
VARIANTS = (
    *("teacher", "rcm4", "rcm3", "rcm2", "rcm1", "rcm4_sla015", "rcm4_sla010", "rcm4_sla005"),
    *("rcm4_sla015_untrained", "rcm4_sla015_w8a8"),
)


@dataclass(frozen=True)
class Row:
    """One number. better: "lower" or "higher"; target: the number that it should reach, None where there is none.

    value None stands for a row that a file should have and has not. method: how it was measured, in words, with its
    standard error.
    """

    name: str
    value: float | None
    unit: str
    better: str
    target: float | None
    method: str

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f"{self.name}: better is lower or higher, not {self.better!r}")

    @property
    def misses(self) -> bool:
        """Whether the value is missing, not a number, or on the wrong side of its target."""
        if self.value is None or self.value != self.value:
            return True
        if self.target is None:
            return False
        return self.value > self.target if self.better == "lower" else self.value < self.target

    @property
    def goal(self) -> str:
        """The target in words; empty where there is none."""
        return "" if self.target is None else f"{'at most' if self.better == 'lower' else 'at least'} {self.target:.4g}"


def expected(name: str, unit: str = "", better: str = "lower", target: float | None = None) -> Row:
    """Return a row that a file should have and has not."""
    return Row(name, None, unit, better, target, "not measured")


# The rows that an evaluation's file must have, by its name: one that is missing is a miss. Those of benchmarks are in
# benchmarks/targets.py.
REQUIRED: dict[str, dict[str, Row]] = {
    file: {row.name: row for row in rows}
    for file, rows in {
        "demo.json": (
            *(expected(f"probe.{factor}.accuracy") for factor in FACTORS),
            *(expected(name) for name in ("control.shuffled.subject", "vae.psnr")),
            *(expected(f"teacher.{factor}.adherence") for factor in FACTORS),
            *(expected(name) for name in ("teacher.frechet", "demo.cpu.seconds", "demo.cpu.peak_gb")),
        ),
        "quality.json": (
            *(
                expected(f"{variant}.{measure}")
                for variant in VARIANTS
                for measure in (*(f"{factor}.adherence" for factor in FACTORS), "frechet", "diversity", "cpu.seconds")
            ),
            *(expected(f"control.none.{factor}") for factor in FACTORS),
            *(expected(f"{name}.frechet") for name in ("vae", "render", "old_teacher", "teacher.old_subjects")),
        ),
    }.items()
}


def write_results(path: str | Path, rows: Sequence[Row], command: str, *, keep: bool = False) -> None:
    """Write a result file, whole or not at all, with this machine's device, versions and commit.

    keep: rows of an older file at `path` that are not measured here stay in their places, and their `method` says where
    and when they were measured. Raises ValueError for two rows of one name.
    """
    path = Path(path)
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"rows named twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    new = {row.name: asdict(row) for row in rows}
    if keep and path.exists():
        older = _parse(path)
        place = f"{older['device']}, {older['commit']}, {older['date']}"
        for row in older["rows"]:
            if row["name"] not in new and "; measured on " not in row["method"]:
                row["method"] += f"; measured on {place}"
        old = {row["name"]: row for row in older["rows"]}
        new = {name: new.pop(name, row) for name, row in old.items()} | new
    report = {
        "device": device_name(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "rows": list(new.values()),
    }
    write_file(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def read_results(path: str | Path) -> list[Row]:
    """The rows of a result file. Raises UserError when it is not one."""
    return [Row(**row) for row in _parse(Path(path))["rows"]]


def check(path: str | Path, required: Sequence[Row] | None = None) -> list[Row]:
    """Return the rows that miss: those on the wrong side of their target, and those that are not there.

    required: rows that the file must have; by default those of an evaluation's file of that name.
    """
    rows = read_results(path)
    needed = list(REQUIRED.get(Path(path).name, {}).values()) if required is None else required
    return [row for row in rows if row.misses] + missing(rows, needed)


def missing(rows: Sequence[Row], required: Sequence[Row]) -> list[Row]:
    """Return the required rows that are not among these; their value is None."""
    here = {row.name for row in rows}
    return [row for row in required if row.name not in here]


def _parse(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(read_file(path, 256_000_000))
        for row in report["rows"]:
            Row(**row)
        if not all(isinstance(report[key], str) for key in ("device", "commit", "date", "command")):
            raise TypeError("device, commit, date and command are strings")
    except OSError:
        raise UserError(f"there is no result file {path}") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a result file: {error}") from None
    return report


def device_name() -> str:
    """The GPU that PyTorch uses here, else the processor and its usable cores."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}" if count > 1 else torch.cuda.get_device_name()
    return cpu_name()


def cpu_name() -> str:
    """The processor's name and the cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model or platform.processor() or platform.machine()}, {cores} cores"


def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str:
    """The commit of the source tree, "-dirty" where tracked files differ from it; "unknown" outside a repository.

    As it was when first asked: results that a process writes piece by piece are tracked files too.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command_line() -> str:
    """The command that this process was started with, as a person would type it."""
    return " ".join(["turbodiffusion", *sys.argv[1:]])
