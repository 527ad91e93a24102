"""Doctor's judgement, with made-up kernels on a CPU: what is refused, what is remembered, what is printed."""

import dataclasses
import json
import logging
import re

import pytest
import torch

from turbodiffusion.cli import bench
from turbodiffusion.cli import doctor as doctor_command
from turbodiffusion.cli import main as cli
from turbodiffusion.config import REFERENCE, Kernels
from turbodiffusion.errors import MachineError
from turbodiffusion.evaluation import result_file as results
from turbodiffusion.inference import doctor
from turbodiffusion.memory.plan import DeviceInfo
from turbodiffusion.ops import cases as table
from turbodiffusion.ops.cases import Case

CPU = torch.device("cpu")
H200 = DeviceInfo(
    "cuda",
    "NVIDIA H200",
    150 << 30,
    149 << 30,
    16,
    64 << 30,
    (9, 0),
    "580.65.06",
    {"torch": "2.11.0", "cuda": "13.0", "triton": "3.6.0"},
)


def case(name: str, group: str, kernel=None, **others) -> Case:
    """An op that doubles, whose kernel is a function given here; right if none is."""

    def run(impl: str, x):
        return 2 * x if impl == "reference" or kernel is None else kernel(x)

    def make(tokens: int, seed: int):
        return (table.random(CPU, tokens, 16, dtype=torch.float32, seed=seed),)

    return Case(name, group, "16", make, run, 1e9, "TB/s", exact=lambda x: 2 * x.float(), **others)


def broken(x):
    raise RuntimeError("ptxas fatal: out of registers\nat line 3")


def unwritten(x):
    return x.new_empty(x.shape)


RIGHT = [case("norm", "norm"), case("product", "linear"), case("sparse", "attention")]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    doctor._choose.cache_clear()
    yield tmp_path
    doctor._choose.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """The answers of a GPU from a CPU's tensors; returns a function that sets the kernels and counts the checks."""
    calls = []

    def install(*kernels: Case, here: DeviceInfo = H200) -> list[int]:
        def all_cases(device, width, *, heads=None):
            calls.append(width)
            yield from kernels

        monkeypatch.setattr(doctor, "cases", all_cases)
        monkeypatch.setattr(doctor, "device_info", lambda device: here)
        monkeypatch.setattr("turbodiffusion.inference.device.device_info", lambda device: here)
        doctor._choose.cache_clear()
        return calls

    return install


def test_a_cpu_gets_the_references_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "check_kernels", lambda *_, **__: pytest.fail("checked"))
    assert doctor.choose("cpu") == REFERENCE == Kernels()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cpu"}, "NVIDIA GPU"),
        ({"capability": (7, 5)}, "8.0 or more"),
        ({"versions": {**H200.versions, "triton": "none"}}, "pip install triton"),
    ],
)
def test_a_machine_without_kernels_is_told_what_it_lacks(gpu, change, words):
    here = dataclasses.replace(H200, **change)
    calls = gpu(*RIGHT, here=here)
    assert words in (doctor.unsupported_reason(here) or "")
    assert doctor.choose("cpu") == REFERENCE and calls == []


def test_right_kernels_are_chosen_group_by_group(gpu):
    gpu(*RIGHT)
    assert doctor.choose("cpu") == Kernels(attention="triton", linear="triton", norm="triton")


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (lambda x: 2.01 * x, "allowed"),
        (broken, "RuntimeError: ptxas fatal: out of registers"),
        (unwritten, "error nan"),
    ],
)
def test_a_wrong_kernel_takes_its_group_to_the_reference_and_says_so(gpu, caplog, kernel, words):
    gpu(*RIGHT, case("product.gelu", "linear", kernel))
    with caplog.at_level(logging.WARNING):
        assert doctor.choose("cpu") == Kernels(attention="triton", norm="triton")
    loud = [record.message for record in caplog.records if "product.gelu" in record.message]
    assert len(loud) == 1 and words in loud[0] and "turbodiffusion doctor" in loud[0]
    doctor._choose.cache_clear()  # another process on this machine: not checked again, and still loud
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        doctor.choose("cpu")
    assert "product.gelu is wrong" in caplog.text and "first use" not in caplog.text


def test_the_length_nearest_to_the_bound_is_reported(gpu):
    gpu(case("norm", "norm", lambda x: 2 * x * (1.00005 if len(x) == doctor.QUICK[1] else 1.0), bound=0.01))
    (check,) = doctor.check_kernels(CPU)
    assert check.right and check.shape == f"{doctor.QUICK[1]} tokens, 16"


def test_a_kernel_that_the_gpu_is_too_old_for_is_left_out(gpu):
    ampere = dataclasses.replace(H200, name="NVIDIA A100", capability=(8, 0))
    gpu(*RIGHT, case("product.fp8", "linear", broken, needs=(8, 9)), here=ampere)
    assert [check.op for check in doctor.check_kernels("cuda")] == ["norm", "product", "sparse"]


def test_full_memory_is_no_wrong_kernel(gpu, home):
    def full(x):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    gpu(case("norm", "norm", full))
    with pytest.raises(MachineError, match="too little free memory"):
        doctor.choose("cpu")
    assert not doctor.cache_file().exists()


def test_a_kernel_that_takes_the_gpu_away_is_remembered(gpu):
    """Nothing runs on the GPU after it, so nothing more is tried; the next process is told without trying."""

    def lost(x):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    calls = gpu(RIGHT[0], case("product", "linear", lost), RIGHT[2])
    with pytest.raises(MachineError, match="product broke on this GPU"):
        doctor.choose("cpu")
    assert doctor.choose("cpu") == REFERENCE and len(calls) == 1


def test_an_answer_is_kept_for_this_very_machine(gpu, monkeypatch):
    calls = gpu(*RIGHT)
    doctor.choose("cpu")
    doctor.choose("cpu")
    assert len(calls) == 1
    doctor._choose.cache_clear()
    doctor.choose("cpu")
    assert len(calls) == 1
    for change in (
        {"name": "NVIDIA H100 80GB HBM3"},
        {"capability": (10, 0)},
        {"driver": "590.1"},
        {"versions": {**H200.versions, "torch": "2.12.0"}},
        {"versions": {**H200.versions, "triton": "3.7"}},
    ):
        before = len(calls)
        gpu(*RIGHT, here=dataclasses.replace(H200, **change))
        doctor.choose("cpu")
        assert len(calls) == before + 1, change
    gpu(*RIGHT)
    monkeypatch.setattr(doctor, "_source_hash", lambda: "edited")
    before = len(calls)
    doctor.choose("cpu")
    assert len(calls) == before + 1


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"x": 1}'])
def test_a_damaged_cache_is_written_anew(gpu, text):
    doctor.cache_file().parent.mkdir(parents=True)
    doctor.cache_file().write_text(text)
    gpu(*RIGHT)
    doctor.choose("cpu")
    assert doctor.recall(H200) is not None


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(gpu, home, caplog):
    (home / "turbodiffusion").write_text("a file where the folder should be")
    gpu(*RIGHT)
    with caplog.at_level(logging.WARNING):
        assert doctor.choose("cpu").norm == "triton"
    assert "cannot write" in caplog.text


def test_limits_are_those_of_the_named_gpu():
    assert doctor.limits("NVIDIA H200")["TB/s"] == 4.8
    assert doctor.limits("NVIDIA H100 80GB HBM3")["TB/s"] == 3.35
    assert doctor.limits("some other GPU") == {} == doctor.limits(None)
    assert all(set(numbers) == {"TB/s", "TFLOP/s", "TOP/s"} for numbers in doctor.LIMITS.values())


# ---- turbodiffusion doctor ----


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_the_command_without_a_gpu_says_what_runs_and_what_it_would_take(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "references in PyTorch run" in out and "NVIDIA GPU" in out and torch.__version__ in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_without_a_gpu_writes_what_is_known(capsys, tmp_path):
    code, out, _ = run(capsys, "doctor", "--json", str(tmp_path / "doctor.json"))
    assert code == 0 and "no kernel was checked" in out
    rows = results.read_results(tmp_path / "doctor.json")
    assert [row.name for row in rows] == [f"kernels.{group}" for group in doctor.GROUPS]
    assert all(row.value == 0 and "NVIDIA GPU" in row.method for row in rows)


def test_the_command_prints_the_table_and_writes_rows(gpu, capsys, tmp_path, wide):
    gpu(*RIGHT)
    code, out, _ = run(capsys, "doctor", "--json", str(tmp_path / "doctor.json"))
    assert code == 0
    for word in ("NVIDIA H200", "580.65.06", "product", "norm triton", "vae reference", "one pass over memory"):
        assert word in out
    rows = results.read_results(tmp_path / "doctor.json")
    assert [row.name for row in rows] == ["norm.16.error", "product.16.error", "sparse.16.error"]
    assert not any(row.misses for row in rows)
    assert doctor.recall(H200) is not None


def test_a_narrow_terminal_gets_what_fits(gpu, capsys, monkeypatch):
    """Each kernel in one line; a reason that is cut into words of eight letters helps nobody."""
    monkeypatch.setenv("COLUMNS", "80")
    long = case("quantized_modulated_layer_norm.int8", "norm", how="int8 and fp8 tensor cores, in one pass over memory")
    gpu(*RIGHT, long)
    lines = run(capsys, "doctor")[1].splitlines()  # into a file
    assert any(re.match(r"quantized_modulated.*tokens, 16 +int8 and .*over memory", line) for line in lines)
    monkeypatch.setattr(doctor_command.Console, "is_terminal", True)
    _, out, _ = run(capsys, "doctor")
    assert "one pass over memory" not in out and "a terminal of 140 columns" in out
    (line,) = (line for line in out.splitlines() if line.startswith("product"))
    assert re.fullmatch(r"product +triton +\S+e[+-]\d\d +\S+e[+-]\d\d *", line)


def test_the_command_ends_with_1_where_a_kernel_is_wrong(gpu, capsys, tmp_path, wide):
    gpu(*RIGHT, case("product.gelu", "linear", broken))
    code, out, _ = run(capsys, "doctor", "--json", str(tmp_path / "doctor.json"))
    assert code == 1
    assert "wrong: product.gelu is wrong" in out and "linear reference" in out
    assert results.check(tmp_path / "doctor.json")[0].name == "product.gelu.16.error"


def test_full_times_what_is_right(gpu, capsys, monkeypatch, wide):
    monkeypatch.setattr(doctor, "milliseconds", lambda case: 0.5)
    monkeypatch.setattr(doctor, "RAGGED", (1, 5))
    gpu(case("norm", "norm", tokens=7), case("part", "attention", tokens=7))
    code, out, _ = run(capsys, "doctor", "--full")
    assert code == 0 and "0.500" in out and "limit" in out and "7 tokens" in out
    # 1e9 bytes in half a millisecond are 2 of 4.8 TB/s
    assert "42%" in out


# ---- turbodiffusion bench ----


def result_file(path, *rows):
    results.write_results(path, [results.Row(*row) for row in rows], "a test")
    return str(path)


def test_check_prints_what_misses(capsys, tmp_path):
    good = ("fast.ms", 1.0, "ms", "lower", 2.0, "a clock")
    file = result_file(tmp_path / "a.json", good)
    assert run(capsys, "bench", "--check", file)[:2] == (0, "")
    file = result_file(tmp_path / "b.json", good, ("slow.ms", 3.0, "ms", "lower", 2.0, "a clock"))
    code, out, err = run(capsys, "bench", "--check", file)
    assert (code, out) == (1, "slow.ms: 3 ms, at most 2 (a clock)\n") and "2 rows, 1 miss" in err
    file = result_file(tmp_path / "h200.json", good)
    code, out, _ = run(capsys, "bench", "--check", file)
    assert code == 1 and "e2e.1_3b.480p.4steps.warm_s: missing, at most 1.6 (not measured)\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench"], "give a group"),
        (["bench", "speed"], "no group 'speed'"),
        (["bench", "ops", "--check", "x.json"], "give a group"),
        (["bench", "--check", "none.json"], "no result file none.json"),
    ],
)
def test_bench_refuses(capsys, arguments, words):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and words in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_without_a_gpu_is_one_line(capsys):
    if not bench.BENCHMARKS.is_dir():
        pytest.skip("no checkout")
    for group in bench.SCRIPTS:
        code, out, err = run(capsys, "bench", group)
        assert (code, out) == (2, "") and err.startswith(f"error: bench {group} ") and err.count("\n") == 1
        assert "NVIDIA GPU" in err and "--check" in err


def test_bench_runs_the_scripts_of_a_checkout(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(doctor, "unsupported_reason", lambda here: None)
    code, _, err = run(capsys, "bench", "ops")
    assert code == 2 and "ops.py, attention.py" in err and "clone the repository" in err
    for name, value in (("ops", 0), ("attention", 1)):
        (tmp_path / f"{name}.py").write_text(
            f"def main(arguments):\n    print('{name}', *arguments)\n    return {value}\n"
        )
    assert run(capsys, "bench", "ops", "--only", "rms") == (1, "ops --only rms\nattention --only rms\n", "")


def test_the_scripts_that_bench_names_take_arguments():
    """Those that are there; each is a module whose main(arguments) returns an exit code."""
    for script in sum(bench.SCRIPTS.values(), ()):
        path = bench.BENCHMARKS / script
        assert not path.exists() or "def main(arguments: Sequence[str] | None = None) -> int:" in path.read_text()


# ---- turbodiffusion warmup ----


def test_warmup_makes_one_step_twice(capsys, tiny_model, monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    code, out, _ = run(capsys, "warmup", "--model", str(tiny_model))
    assert code == 0
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert lines["seconds"] == ["first", "then"]
    assert {"load", "text_encode", "denoise", "vae_decode", "mp4_encode", "all"} < set(lines)
    assert all(len(values) == 2 for values in lines.values())


def test_the_kept_file_is_json_that_people_can_read(gpu):
    gpu(*RIGHT)
    doctor.choose("cpu")
    (entry,) = json.loads(doctor.cache_file().read_text()).values()
    assert {check["op"] for check in entry["checks"]} == {"norm", "product", "sparse"} and "UTC" in entry["date"]
