"""Each op has a reference, a case, a test file at the mirrored path and, where it has kernels, a benchmark."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

from turbodiffusion.ops import cases as table
from turbodiffusion.ops import contract

ROOT = Path(__file__).parents[2]
OPS = ROOT / "turbodiffusion/ops"
GROUPS = ("attention", "linear", "norm", "vae")
# What no case in ops/cases covers, and why; benchmarks and tests reach it by its name.
WITHOUT_A_CASE = {
    "dense_attention": "PyTorch's own attention",
    "attention_tangent": "of training alone: doctor need not check it before a video",
    "projected_linear_attention": "linear_attention and PyTorch's product",
    "apply_rope": "has no kernel of its own",
    "int8_row_linear": "quantize_per_token and per_token_linear together",
    "fp8_row_linear": "quantize_per_token and per_token_linear together",
}
# Kernels that are part of another one's: tested with it.
TESTED_WITH = {"attention/kernels/quantize": "sage", "linear/kernels/gemm_hopper_gluon": "gemm"}
BENCHMARKS = "\n".join((ROOT / f"benchmarks/{name}.py").read_text() for name in ("ops", "attention", "vae"))


def modules() -> list[str]:
    """The modules of ops, as group/name, without helpers that define no op."""
    return [
        f"{group}/{path.stem}"
        for group in GROUPS
        for path in sorted((OPS / group).glob("*.py"))
        if "impl: str" in path.read_text()
    ]


def ops() -> dict[str, str]:
    """The public functions that take an `impl`, and the module of each."""
    found = {}
    for name in modules():
        module = importlib.import_module(f"turbodiffusion.ops.{name.replace('/', '.')}")
        for op, function in vars(module).items():
            own = inspect.isfunction(inspect.unwrap(function)) and function.__module__ == module.__name__
            if own and not op.startswith("_") and "impl" in inspect.signature(function).parameters:
                found[op] = name
    return found


def implementations(op: str) -> set[str]:
    """The keys of the dictionary that the op hands to `select_impl`; of an op over another one, that one's."""
    tree = ast.parse((OPS / f"{ops()[op]}.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == op)
    nodes = list(ast.walk(function))
    calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    if "select_impl" not in calls:
        return implementations(next(name for name in calls if name in ops()))
    keys = [key for node in nodes if isinstance(node, ast.Dict) for key in node.keys]
    return {key.value for key in keys if isinstance(key, ast.Constant)}


class CalledError(Exception):
    """Raised in place of an op's result."""


@pytest.fixture(scope="module")
def covered() -> dict[str, set[str]]:
    """By each function that makes cases, the ops that its cases call."""
    cpu = torch.device("cpu")
    makers = {
        "norm_cases": lambda: table.norm_cases(cpu, 64, 1),
        "quantize_cases": lambda: table.quantize_cases(cpu, 64, 96),
        "product_cases": lambda: table.product_cases(cpu, 64, 96),
        "block_cases": lambda: table.block_cases(cpu, 64, 96),
        "attention_cases": lambda: table.attention_cases(cpu, 1, head_dim=64, topk=0.3),
        "vae_cases": lambda: table.vae_cases(cpu, 32),
    }
    called: set[str] = set()
    found = {}
    with pytest.MonkeyPatch.context() as patch:

        def record(op, impl, implementations):
            if impl == "probe":
                called.add(op)
                raise CalledError
            return contract.select_impl(op, impl, implementations)

        for name in modules():
            patch.setattr(f"turbodiffusion.ops.{name.replace('/', '.')}.select_impl", record, raising=False)
        # A map is made by the kernel: here by the reference.
        patch.setattr("turbodiffusion.ops.cases.attention.block_map", by_reference(table.attention.block_map))
        for maker, make in makers.items():
            called.clear()
            for case in make():
                with pytest.raises(CalledError), torch.no_grad():
                    case.run("probe", *case.make(129, 1))
            found[maker] = set(called)
    return found


def by_reference(op):
    return lambda *args, impl, **options: op(*args, impl="reference" if impl == "triton" else impl, **options)


def test_ops_are_found():
    assert {"sla_attention", "per_token_linear", "norm_rope_qk", "norm_silu", "conv3d_few_channels"} <= ops().keys()
    assert len(ops()) >= 20


@pytest.mark.parametrize("op", ops())
def test_an_op_has_a_reference(op):
    assert "reference" in implementations(op)


def test_each_op_has_a_case(covered):
    assert ops().keys() - set().union(*covered.values()) == WITHOUT_A_CASE.keys()


@pytest.mark.parametrize("module", modules())
def test_an_op_has_a_test_file_at_the_mirrored_path(module):
    group, name = module.split("/")
    assert (ROOT / f"tests/ops/{group}/test_{name}.py").is_file()


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_have_a_test_file_at_the_mirrored_path(group):
    for path in (OPS / group / "kernels").glob("[a-z]*.py"):
        name = TESTED_WITH.get(f"{group}/kernels/{path.stem}", re.sub(r"_backward$|_hopper_gluon$", "", path.stem))
        assert (ROOT / f"tests/ops/{group}/kernels/test_{name}.py").is_file(), path.stem


def test_kernels_have_a_benchmark(covered):
    for op in ops():
        if implementations(op) & {"triton", "cudnn"}:
            makers = {maker for maker, called in covered.items() if op in called}
            assert any(re.search(rf"\b{name}\b", BENCHMARKS) for name in (op, *makers)), op
