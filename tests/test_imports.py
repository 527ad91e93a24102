"""Who may import whom: the arrows of docs/architecture.md, read from the syntax trees of the package.

Every import counts: at the top, inside a function, under TYPE_CHECKING. Only the face (`turbodiffusion/__init__.py`,
`__main__.py`) is free: it stands above all folders and hands out their public names, and they take nothing but the
version from it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "turbodiffusion"
FACE = {PACKAGE, f"{PACKAGE}.__main__"}
PLAIN = ("texts", "errors", "config", "schedules", "memory", "presets", "request")  # data: neither torch nor numpy
# What the arrows allow and the design does not: pairs of (importing module, imported module), by prefix.
NEVER = [
    *((own, plain) for own in ("ops", "nn", "models", "parallel") for plain in ("memory", "presets", "request")),
    ("ops", "parallel"),
    ("serving", "training"),
    ("training", "serving"),
    ("evaluation", "serving"),
    *((f"serving.{own}", heavy) for own in ("app", "job_store", "messages") for heavy in ("torch", "numpy")),
    ("serving.studio", "inference"),
]
PIPELINE_OPENERS = ("serving.worker",)  # of serving
DEMO_IMPORTS = {"demo", "errors", "files", "texts", "numpy", "torch", "PIL"}
OVER_DEMO = ("inference", "training", "evaluation", "cli")  # that know the demo world
# Not on every machine: a GPU box has no command line, a CPU no triton. Only these modules import them at the top, and
# only these may lead there; kernels are in folders of that name, imported when one is chosen.
FRONT = {"av", "typer", "rich", "ftfy"}
FRONT_OF = {
    f"{PACKAGE}.media.metadata": {"av"},
    f"{PACKAGE}.media.video": {"av"},
    f"{PACKAGE}.inference.pipeline": {"av"},
    f"{PACKAGE}.cli.main": {"typer", "rich"},
    f"{PACKAGE}.cli.train": {"typer"},
    f"{PACKAGE}.cli.options": {"typer"},
    f"{PACKAGE}.cli.progress": {"rich"},
    f"{PACKAGE}.cli.console": {"rich"},
    f"{PACKAGE}.cli.model_page": {"rich"},
    **{f"{PACKAGE}.cli.{name}": {"typer", "rich"} for name in ("help", "doctor", "bench", "making")},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text() for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def folder(module: str) -> str:
    """`ops` of `turbodiffusion.ops.norm.rope`; a foreign module's own first name."""
    first, _, rest = module.partition(".")
    return rest.split(".")[0] or PACKAGE if first == PACKAGE else first


def layers() -> list[set[str]]:
    """The arrow line of the page, lowest folder first."""
    page = (ROOT / "docs/architecture.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("texts -> "))
    return [set(re.findall(r"\w+", part)) for part in line.split("->")]


def imports(module: str, source: str, known: Mapping[str, str], *, top: bool = False) -> Iterator[str]:
    """Full names of the modules that `source` imports, ours and foreign; with `top` what importing it runs at once."""
    for node in statements(tree(source), top):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide which folder they reach"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner != f"{PACKAGE}.__version__":
                    yield inner if inner in known else node.module


@cache
def tree(source: str) -> ast.Module:
    return ast.parse(source)


def statements(node: ast.AST, top: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not (top and (lazy or typing)):
            yield child
            yield from statements(child, top)


def violations(sources: Mapping[str, str]) -> list[str]:
    """Imports against the arrows, one line each."""
    level = {name: number for number, names in enumerate(layers()) for name in names}
    found = []
    for module, source in sources.items():
        if module in FACE:
            continue
        own = folder(module)
        for target in imports(module, source, sources):
            ours = target.split(".")[0] == PACKAGE
            there = folder(target)
            if own == "demo":
                if there not in DEMO_IMPORTS | set(sys.stdlib_module_names):
                    found.append(f"{module} imports {target}: the demo world stands on errors, numpy, torch and PIL")
            elif own not in level:
                found.append(f"{module}: folder {own!r} is not on the arrow line of docs/architecture.md")
            elif there == "demo" and own not in OVER_DEMO:
                found.append(f"{module} imports {target}: only {', '.join(OVER_DEMO)} know the demo world")
            elif ours and there != "demo" and level.get(there, len(level)) > level[own]:
                found.append(f"{module} imports {target}: against the arrow")
    return found


def test_every_import_follows_the_arrows():
    assert violations(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("ops.x", "from turbodiffusion.nn.norm import RMSNorm"),
        ("ops.x", "import turbodiffusion.inference.pipeline as p"),
        ("nn.x", "from turbodiffusion import models"),
        ("models.x", "def f():\n    from turbodiffusion.checkpoint.load import load_vae"),
        ("memory.x", "if TYPE_CHECKING:\n    from turbodiffusion.request import Request"),
        ("presets", "from turbodiffusion.demo.words import SCENES"),
        ("demo.x", "from turbodiffusion.models.vae.model import WanVAE"),
        ("demo.x", "import scipy"),
        ("inference.x", "from turbodiffusion import Pipeline"),
        ("newfolder.x", "from turbodiffusion.errors import UserError"),
    ],
)
def test_an_import_against_the_arrows_is_found(module, line):
    assert len(violations({**SOURCES, f"{PACKAGE}.{module}": line})) == 1


def prohibited(sources: Mapping[str, str]) -> list[str]:
    """Imports that NEVER names, and torch or numpy in the plain layer, one line each."""
    pairs = [*NEVER, *((own, heavy) for own in PLAIN for heavy in ("torch", "numpy"))]
    found = []
    for module, source in sources.items():
        own = module.removeprefix(f"{PACKAGE}.")
        for target in imports(module, source, sources):
            there = target.removeprefix(f"{PACKAGE}.")
            if any(_under(own, a) and _under(there, b) for a, b in pairs):
                found.append(f"{module} imports {target}")
            elif _under(own, "serving") and own not in PIPELINE_OPENERS and _under(there, "inference.pipeline"):
                found.append(f"{module} imports {target}: only the worker opens a pipeline")
    return found


def _under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def test_nothing_imports_what_the_design_keeps_apart():
    assert prohibited(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("memory.plan", "def f():\n    import torch"),
        ("request", "from numpy import ndarray"),
        ("ops.norm.rope", "from turbodiffusion.parallel.groups import rank_and_size"),
        ("models.wan", "from turbodiffusion.request import Request"),
        ("serving.app", "if TYPE_CHECKING:\n    import torch"),
        ("serving.studio.page", "from turbodiffusion.inference.load_options import LoadOptions"),
        ("serving.launch", "from turbodiffusion.inference.pipeline import Pipeline"),
        ("serving.worker", "from turbodiffusion.training.trainer import Trainer"),
        ("training.recipes.rcm", "from turbodiffusion.serving.worker import Worker"),
    ],
)
def test_an_import_that_the_design_keeps_apart_is_found(module, line):
    assert len(prohibited({f"{PACKAGE}.{module}": line})) == 1


def test_the_plain_layer_imports_neither_torch_nor_numpy():
    """As it happens, and not only as it is written."""
    names = ", ".join(f"{PACKAGE}.{name}" for name in (*PLAIN, "memory.plan", "inference.load_options"))
    code = f"import sys, {names}; print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a ring, the first once more at the end; none if there is no such ring."""
    graph = {
        module: {target for target in imports(module, source, sources) if target in sources} - FACE
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circle_of_modules():
    assert circle(SOURCES) == []
    back = {f"{PACKAGE}.models.vae.layers": "def f():\n    from turbodiffusion.models.vae.model import WanVAE"}
    assert {f"{PACKAGE}.models.vae.model", f"{PACKAGE}.models.vae.layers"} <= set(circle({**SOURCES, **back}))


def reaches(module: str, sources: Mapping[str, str]) -> set[str]:
    """FRONT packages and triton, as importing `module` imports them: directly or through ours, __init__ files too."""
    todo, seen, found = [module], set(), set()
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        parents = here.split(".")
        todo += [name for n in range(1, len(parents)) if (name := ".".join(parents[:n])) in sources]
        for target in imports(here, sources[here], sources, top=True):
            found |= {folder(target)} & (FRONT | {"triton"})
            todo += [target] if target in sources else []
    return found


def test_only_the_front_needs_av_typer_rich_and_ftfy_and_only_kernels_triton():
    wrong = {}
    for module in SOURCES:
        allowed = FRONT if module in FACE else FRONT_OF.get(module, set())
        allowed = {"triton"} if ".kernels." in module else allowed
        if extra := reaches(module, SOURCES) - allowed:
            wrong[module] = extra
    assert wrong == {}


def test_a_front_package_behind_another_module_is_found():
    planted = {**SOURCES, f"{PACKAGE}.request": "from turbodiffusion.media.video import save"}
    assert reaches(f"{PACKAGE}.request", planted) == {"av"}
    assert reaches(f"{PACKAGE}.request", {**SOURCES, f"{PACKAGE}.request": "def f():\n    import av"}) == set()
