"""What this machine can run, and whether each kernel is right on it.

Kernels are compiled for the GPU at hand by the Triton at hand, so whether they are right is a fact about this machine,
not about the source. `check_kernels` compares each with its reference on fresh inputs; `choose` does so at first use on
a GPU, remembers the answer, and gives a group of ops with a wrong kernel to its reference, loudly.
"""

import hashlib
import json
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion import __version__
from turbodiffusion.config import REFERENCE, Kernels
from turbodiffusion.errors import MachineError, OutputError
from turbodiffusion.files import cache_folder, write_file
from turbodiffusion.inference.device import device_info
from turbodiffusion.memory.plan import DeviceInfo
from turbodiffusion.ops.cases import MODELS, RAGGED, Case, cases, errors
from turbodiffusion.ops.implementations import TRITON_GPU

log = logging.getLogger(__name__)

GROUPS = tuple(field.name for field in fields(Kernels))
# Less than a tile, and enough of them to fill any GPU with large tiles, which are another kernel, and to give programs
# of attention a second block of queries, with an even number of kept ones; both ragged.
QUICK = (129, 3900)
ROTATE_BYTES = 256 << 20  # of inputs that calls rotate through: more than any L2 cache
# By the makers' data sheets, dense: 1e12 a second in 8 bits and in bfloat16, and of memory bytes.
LIMITS: dict[str, dict[str, float]] = {
    "H200": {"TOP/s": 1979, "TFLOP/s": 989, "TB/s": 4.8},
    "H100 80GB HBM3": {"TOP/s": 1979, "TFLOP/s": 989, "TB/s": 3.35},
    "A100-SXM4-80GB": {"TOP/s": 624, "TFLOP/s": 312, "TB/s": 2.04},
    "L40S": {"TOP/s": 733, "TFLOP/s": 362, "TB/s": 0.864},
    "B200": {"TOP/s": 4500, "TFLOP/s": 2250, "TB/s": 8.0},
}


@dataclass(frozen=True)
class Check:
    """One kernel on this machine, at the length where it came nearest to its bound (or past it)."""

    op: str
    group: str
    implementation: str
    error: float  # NaN: it could not run, or gave a NaN
    bound: float
    shape: str
    right: bool
    why: str  # it was chosen; what is wrong, where it is
    ms: float | None = None  # at the real shape
    rate: float | None = None  # work a second, in 1e12 of `unit`
    unit: str = ""
    share: float | None = None  # of the chip's limit


def unsupported_reason(here: DeviceInfo) -> str | None:
    """Return why no kernel runs on a device; None where kernels run."""
    if here.gpu is None or here.capability is None:
        return "the kernels need an NVIDIA GPU that PyTorch can use"
    if here.capability < TRITON_GPU:
        found = dotted(here.capability)
        return f"the kernels need a GPU of compute capability 8.0 or more (Ampere), {here.gpu} has {found}"
    if here.versions["triton"] == "none":
        return "the kernels need the package triton: pip install triton"
    return None


def dotted(capability: tuple[int, int]) -> str:
    """Return a compute capability as people write it: 9.0."""
    return ".".join(map(str, capability))


def check_kernels(
    device: torch.device | str, *, quick: bool = True, on_check: Callable[[Check], None] | None = None
) -> list[Check]:
    """Compare every kernel that "auto" would pick on `device` with its reference, on fresh random inputs.

    quick: two ragged lengths at the width of the 1.3B model, in seconds once the kernels are compiled; else more
    lengths, the real one, both models, and the times. on_check is called after each. Raises MachineError when the GPU's
    memory is full.
    """
    device = torch.device(device)
    here = device_info(device)
    checks = []
    for case in _cases(device, quick):
        if device.type == "cuda" and (here.capability or (0, 0)) < case.needs:
            continue
        check = _check(case, QUICK if quick else (*RAGGED, case.tokens), here)
        if not quick and check.right and case.work:
            check = _timed(case, check, here)
        checks.append(check)
        if on_check is not None:
            on_check(check)
        if gpu_is_lost(check.why):
            why = f"not checked: {check.op} ended this process's use of the GPU"
            return [*checks, *(replace(check, op=f"{group} ops", group=group, why=why) for group in GROUPS)]
    return checks


def gpu_is_lost(text: str) -> bool:
    """Whether an error's text tells of one after which CUDA refuses all work of this process."""
    return re.search("illegal (memory|instruction|address)|misaligned|unspecified launch failure", text) is not None


def kernels_of(checks: Sequence[Check]) -> Kernels:
    """Triton for each group that has kernels, all of them right; the reference for the others."""
    right = {group: [check.right for check in checks if check.group == group] for group in GROUPS}
    return Kernels(**{group: "triton" if found and all(found) else "reference" for group, found in right.items()})


def choose(device: torch.device | str) -> Kernels:
    """The implementation of each group of ops for a device, asked once a process and checked once a machine.

    The answer is kept in `cache_file()` under the GPU, the driver, the versions and the source of the ops; with another
    of these the checks run again. A group with a wrong kernel gets the reference, and a warning says which and how
    wrong. On a machine without a GPU that runs Triton: the reference, nothing is run. Raises MachineError when the
    GPU's memory is too full to check, and once when a kernel takes the GPU from this process.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _choose(device)


@cache
def _choose(device: torch.device) -> Kernels:
    here = device_info(device)
    reason = unsupported_reason(here)
    if reason is not None:
        log.info("reference ops in PyTorch: %s", reason)
        return REFERENCE
    checks = recall(here)
    if checks is None:
        log.warning("first use on %s with these versions: compiling and checking every kernel, once", here.gpu)
        start = time.perf_counter()
        checks = check_kernels(device)
        remember(here, checks)
        log.warning("checked %d kernels in %.0f s", len(checks), time.perf_counter() - start)
        lost = next((check for check in checks if gpu_is_lost(check.why)), None)
        if lost is not None:
            raise MachineError(f"{lost.op} broke on this GPU ({lost.why}): start again, PyTorch references will run")
    for problem in problems(checks):
        log.warning("%s", problem)
    chosen = kernels_of(checks)
    log.info("kernels: %s", ", ".join(f"{group} {impl}" for group, impl in asdict(chosen).items()))
    return chosen


def problems(checks: Iterable[Check]) -> list[str]:
    """A line for each wrong kernel: what is wrong, what happens now, what to do."""
    return [
        f"{check.op} is wrong on this machine ({check.shape}): {check.why}. The {check.group} ops run as PyTorch "
        "references instead, right but slow. Other versions of the driver, PyTorch or Triton may mend it: "
        "`turbodiffusion doctor` checks again"
        for check in checks
        if not check.right
    ]


# ---- one kernel ----


def _cases(device: torch.device, quick: bool) -> Iterator[Case]:
    widths = tuple(MODELS)[: 1 if quick else None]
    for number, width in enumerate(widths):
        for case in cases(device, width, heads=6 if quick else None):
            # Attention differs between the models in the number of heads alone.
            if number == 0 or case.group != "attention":
                yield case


def _check(case: Case, lengths: Sequence[int], here: DeviceInfo) -> Check:
    """A kernel at each length; the nearest to its bound counts, and the first that is past it ends the matter."""
    worst: tuple[float, float, int] | None = None
    for tokens in lengths:
        shape = f"{tokens} tokens, {case.shape}"
        # A fresh seed each time: inputs that are always the same would check them, not the kernel.
        seed = int.from_bytes(os.urandom(4))
        try:
            off, allowed = errors(case, tokens, seed)
        except torch.OutOfMemoryError as failure:
            raise MachineError(f"{here.gpu} has too little free memory to check its kernels: {failure}") from failure
        except Exception as failure:  # of the compiler, the driver or the kernel: whatever it is, it does not run here
            text = (str(failure).strip().splitlines() or [""])[0][:200]
            why = f"{type(failure).__name__}: {text}"
            return Check(case.name, case.group, case.impl, float("nan"), case.bound or 0.0, shape, False, why)
        if not off <= allowed:  # a NaN too
            why = f"error {off:.3g}, allowed are {allowed:.3g} (seed {seed})"
            return Check(case.name, case.group, case.impl, off, allowed, shape, False, why)
        if worst is None or off * worst[1] > worst[0] * allowed:
            worst = off, allowed, tokens
    assert worst is not None
    off, allowed, tokens = worst
    shape = f"{tokens} tokens, {case.shape}"
    return Check(case.name, case.group, case.impl, off, allowed, shape, True, _why(case, here))


def _why(case: Case, here: DeviceInfo) -> str:
    tma = (here.capability or (0, 0)) >= (9, 0) and (case.group == "attention" or "cores" in case.how)
    return case.how + (", tiles by TMA" if tma else "")


def _timed(case: Case, check: Check, here: DeviceInfo) -> Check:
    ms = milliseconds(case)
    rate = case.work / ms / 1e9
    limit = limits(here.gpu).get(case.unit)
    values = asdict(check) | {"ms": ms, "rate": rate, "unit": case.unit, "share": rate / limit if limit else None}
    return Check(**values | {"shape": f"{case.tokens} tokens, {case.shape}"})


def limits(gpu: str | None) -> dict[str, float]:
    """The data sheet's numbers of a GPU by its name; empty for one that is not in LIMITS."""
    return next((numbers for name, numbers in LIMITS.items() if gpu and name in gpu), {})


@torch.no_grad()
def milliseconds(case: Case) -> float:
    """Median time of a call inside a CUDA graph whose calls rotate through inputs larger together than the L2."""
    inputs = [case.make(case.tokens, 0)]
    size = sum(x.nbytes for x in inputs[0] if isinstance(x, Tensor))
    inputs += [case.make(case.tokens, seed) for seed in range(10, 10 + min(3, ROTATE_BYTES // size))]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()  # the inputs are made on another stream
    with torch.cuda.stream(stream):
        case.run(case.impl, *inputs[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for x in inputs:
                case.run(case.impl, *x)
        times = []
        for _ in range(25):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / len(inputs))
    return statistics.median(times[5:])


# ---- what was found is kept ----


def cache_file() -> Path:
    """Return the file under XDG_CACHE_HOME, else ~/.cache."""
    return cache_folder() / "doctor.json"


def key(here: DeviceInfo) -> str:
    """What an answer holds for: other hardware, versions or source may be wrong elsewhere."""
    hardware = {"gpu": here.gpu, "capability": here.capability, "memory": here.total, "driver": here.driver}
    parts = hardware | dict(here.versions) | {"turbodiffusion": __version__, "ops": _source_hash()}
    return json.dumps(parts, sort_keys=True)


def recall(here: DeviceInfo) -> list[Check] | None:
    """What was found on this very machine; None where nothing was, or the file is not readable."""
    try:
        entry = json.loads(cache_file().read_text(encoding="utf-8"))[key(here)]
        return [Check(**check) for check in entry["checks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(here: DeviceInfo, checks: Sequence[Check]) -> None:
    """Write down what was found; a folder that cannot be written costs the next process its time, not this one."""
    path = cache_file()
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = {}
    entries = entries if isinstance(entries, dict) else {}
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    entries[key(here)] = {"date": date, "checks": [asdict(check) for check in checks]}
    try:
        write_file(path, (json.dumps(entries, indent=1) + "\n").encode())
    except OutputError as failure:
        log.warning("%s, so the kernels are checked again next time", failure)


@cache
def _source_hash() -> str:
    """Of the ops' source files: an edited kernel is checked again."""
    digest = hashlib.sha256()
    ops = Path(__file__).parents[1] / "ops"
    for path in sorted(ops.rglob("*.py")):
        digest.update(path.relative_to(ops).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
