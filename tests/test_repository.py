"""The repository as its users meet it: sizes, links, the two commands, and versions that fit together."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80
MAX_CHECKOUT = 42e6  # bytes: what travels to a GPU machine with a wheel beside it
# Of no use to anybody else: roots of the machines that this was written on.
OWN_PATHS = re.compile(r"(?<![\w.~/-])/(work|root|tmp)(?![\w-])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a)\s[^>]*(?:src|href)=\"([^\"]+)\"")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def tracked() -> list[Path]:
    """What a clone has; in a tree without git (a release's archive), all but what is never committed."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted(path for name in names if name and (path := ROOT / name).is_file())
    own = ("turbodiffusion", "tests", "docs", "benchmarks", ".ci")
    return sorted(path for path in ROOT.rglob("*") if path.is_file() and path.relative_to(ROOT).parts[0] in own)


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
PAGES = [path for path in FILES if path.suffix == ".md"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_files() -> Iterator[tuple[Path, str]]:
    for path in FILES:
        data = path.read_bytes()
        if b"\0" not in data:
            yield path, data.decode()


def test_files_are_short():
    long = {name(p): n for p, text in text_files() if p.suffix == ".py" and (n := text.count("\n")) > MAX_FILE_LINES}
    assert long == {}


def test_functions_are_short():
    long = {}
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # a command's options are a table, not code: what counts begins at the body
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name(path)}:{node.name}"] = lines
    assert long == {}


def test_no_path_of_one_machine():
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path, text in text_files()
        if path.relative_to(ROOT).parts[0] != "tests"
        for number, line in enumerate(text.splitlines(), 1)
        if OWN_PATHS.search(line)
    ]
    assert found == []


def test_a_path_of_one_machine_is_found():
    assert OWN_PATHS.search('open("/tmp/x")') and OWN_PATHS.search("cd /work")
    assert not OWN_PATHS.search("https://example.org/work/x") and not OWN_PATHS.search("a/tmp/x")


def test_the_checkout_is_small():
    size = sum(path.stat().st_size for path in FILES)
    biggest = sorted(FILES, key=lambda path: -path.stat().st_size)[:3]
    assert size < MAX_CHECKOUT, f"{size / 1e6:.1f} MB; the largest are {', '.join(map(name, biggest))}"


# ---- pages ----


def anchors(page: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(path: Path) -> list[str]:
    dead = []
    for match in LINK.finditer(CODE_BLOCK.sub("", path.read_text())):
        link = match[1] or match[2]
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path):
    assert dead_links(path) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# The Part, two\n")
    (tmp_path / "a.md").write_text(
        '[a](b.md#the-part-two) [b](b.md#part) [c](c.md) <img src="d.png"> [e](https://e.org)'
    )
    assert dead_links(tmp_path / "a.md") == ["b.md#part", "c.md", "d.png"]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "CONTRIBUTING.md", ".ci/run"])
def test_make_commands_of_the_pages_exist(page):
    used = set(re.findall(r"\bmake ([a-z][\w-]*)", "".join(commands(page))))
    assert used and used <= make_targets()


def commands(page: str) -> list[str]:
    """Code blocks and inline code of a page; all of a script."""
    text = (ROOT / page).read_text()
    return re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL) if page.endswith(".md") else [text]


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_command_lines_of_the_pages_parse(page):
    """Each `turbodiffusion COMMAND --option ...` names a command and options that there are."""
    from typer.main import get_command

    from turbodiffusion.cli.main import app

    known = get_command(app).commands
    blocks = "\n".join(commands(page)).replace("\\\n", " ")
    lines = re.findall(r"^turbodiffusion +(\w+)(.*)$", blocks, re.MULTILINE)
    assert len(lines) >= 3
    for command, rest in lines:
        assert command in known
        options = {opt for p in known[command].params for opt in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"(?<=\s)--[\w-]+", rest.split("#")[0])) <= options
        if command == "convert":
            source, target = rest.split()[:2]
            assert target.endswith(".safetensors") or not Path(source).suffix, "a file becomes a file"


@pytest.mark.slow  # builds the networks on the meta device
@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_sizes_of_the_models_on_the_page_are_those_of_the_code(page):
    """Rows `| name | 480p | download GB | in 8 bits | GPU of GiB | in 8 bits |` against presets.py and memory.py."""
    from turbodiffusion.presets import MODELS

    text = (ROOT / page).read_text()
    rows = re.findall(r"^\| `([\w.-]+)` \| (\d+p) \| (\d+) GB \| (\d+) GB \| (\d+) GiB \| (\d+) GiB \|$", text, re.M)
    assert {(row[0], row[1]) for row in rows} == {(m, r) for m, p in MODELS.items() for r, _ in p.published}
    for model, resolution, *written in rows:
        preset = MODELS[model]
        downloads = [preset.files(resolution, quantized=quantized) for quantized in (False, True)]
        sizes = [sum(file.bytes for file in files) / 1e9 for files in downloads]
        sizes += [gpu_need(preset, resolution, linears) for linears in ("off", "int8_block")]
        assert [int(number) for number in written] == [round(size) for size in sizes], (model, resolution)


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_subjects_of_the_demo_model_on_the_page_are_those_of_the_model(page):
    from turbodiffusion.demo.subjects import SUBJECTS

    model = json.loads((ROOT / "turbodiffusion/demo/model/model.json").read_text())
    lines = [re.findall(r"\d+", line) for line in (ROOT / page).read_text().splitlines()]
    numbers = {str(len(SUBJECTS)), str(len(model["about"]["subjects"]))}
    assert any(numbers <= set(line) for line in lines), f"no line of {page} tells both: {numbers}"


def gpu_need(preset, resolution: str, linears: str) -> int:
    """GiB of the smallest card for a video of the default length, its text encoder in CPU memory."""
    from turbodiffusion.memory.plan import Job, Plan, smallest_card
    from turbodiffusion.presets import size_for

    width, height = size_for(resolution, "16:9")
    job = Job(
        model=preset.name,
        transformer=preset.transformer,
        vae=preset.vae,
        text=preset.text,
        experts=preset.experts,
        width=width,
        height=height,
        num_frames=preset.num_frames,
        num_steps=preset.num_steps,
        guided=False,
        dtype="bfloat16",
        device="cuda",
    )
    return smallest_card(job, quant_linear=linears, plan=Plan(offload_text=True))


# ---- make ----


@pytest.fixture
def fake_environment(tmp_path) -> Path:
    """An environment that looks installed, whose `turbodiffusion` prints its arguments, one a line."""
    (tmp_path / "bin").mkdir()
    for program, text in {
        "python": "#!/bin/sh\nexit 1\n",
        "turbodiffusion": '#!/bin/sh\nprintf "%s\\n" "$@"\n',
    }.items():
        (tmp_path / "bin" / program).write_text(text)
        (tmp_path / "bin" / program).chmod(0o755)
    (tmp_path / ".installed").touch()
    return tmp_path


def make_demo(environment: Path, *arguments: str, **variables: str) -> list[str]:
    return subprocess.run(
        ["make", "--silent", "demo", f"VENV={environment}", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **variables},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()


@pytest.mark.parametrize(
    "prompt",
    [
        "一只橙色的猫在阳光明媚的花园里向右奔跑",
        'the dog\'s "big" jump',
        "it costs $5, $HOME or $(echo all)",
        "`date`; rm -rf x & # no comment \\ * ?",
        "--version",
        "",
    ],
)
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_demo_hands_the_prompt_over_as_typed(fake_environment, prompt):
    expected = ["generate", "--", prompt]
    assert make_demo(fake_environment, f"PROMPT={prompt}") == expected
    assert make_demo(fake_environment, PROMPT=prompt) == expected


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_demo_has_a_prompt_of_its_own(fake_environment):
    *_, prompt = make_demo(fake_environment)
    assert prompt == "an orange cat runs to the right through a sunny garden"


def test_a_prompt_that_begins_with_a_dash_is_a_prompt():
    """What `generate --` in the Makefile relies on."""
    from typer.main import get_command

    from turbodiffusion.cli.main import app

    generate = get_command(app).commands["generate"]
    with generate.make_context("generate", ["--", "--version"]) as context:
        assert context.params["prompt"] == "--version" and context.args == []


# ---- versions ----

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    canonicalize_name(pin[0]): Version(pin[1])
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if (pin := line.partition("#")[0].strip().split("==")) != [""]
}
# Every build of torch brings its own of these, at versions that it fixes itself.
OF_TORCH = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    lines = (*PROJECT["build-system"]["requires"], *project["dependencies"], *extras)
    return [needed for line in lines if (needed := Requirement(line)).name != project["name"]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_pin_of_a_dependency_is_inside_its_range(requirement):
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_dependency_of_a_dependency_is_pinned():
    """The closure of `.[test]` as installed here: nothing is left to the day of the installation."""
    optional = {"pillow-heif"}  # of an extra that the tests do without; it needs Pillow alone
    todo, seen = {canonicalize_name(requirement.name) for requirement in requirements()} - optional, set()
    while todo:
        here = todo.pop()
        seen.add(here)
        for line in metadata.requires(here) or ():
            needed = Requirement(line)
            child = canonicalize_name(needed.name)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and child not in seen and not OF_TORCH.match(child):
                todo.add(child)
    assert seen - PINS.keys() == set()


# import name -> distribution, where they differ; torch's builds for NVIDIA GPUs bring triton along
DISTRIBUTIONS = {"PIL": "pillow", "triton": "torch"}


def test_what_the_package_imports_it_declares():
    project = PROJECT["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    for_training = {canonicalize_name(Requirement(line).name) for line in extras["train"]}
    for_media = {canonicalize_name(Requirement(line).name) for line in extras["heic"]}
    missing = {}
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] != "turbodiffusion":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for first in {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names):
                known = declared | (for_training if "training" in path.parts else set()) | {"turbodiffusion"}
                known |= for_media if "media" in path.parts else set()
                if canonicalize_name(DISTRIBUTIONS.get(first, first)) not in known:
                    missing[name(path)] = first
    assert missing == {}


# ---- the file map ----


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_file_map_is_whole_and_true(page):
    """Each module and folder at the top of the package is on it, and what it names is there."""
    text = (ROOT / page).read_text()
    file_map = text[text.index("```\nturbodiffusion/\n") :].removeprefix("```\n").split("```")[0]
    package = ROOT / "turbodiffusion"
    here = {f"{p.name}/" if p.is_dir() else p.name for p in package.iterdir() if p.suffix in ("", ".py")}
    here -= {"__pycache__/", "__main__.py"}
    named = set(re.findall(r"(?<![\w/.<>*])[\w]+(?:\.py|/)", file_map))
    assert here <= named, f"missing on the map: {sorted(here - named)}"
    known = {p.name for p in ROOT.rglob("*.py") if ".venv" not in p.parts}
    known |= {
        f"{p.name}/" for top in ("turbodiffusion", "tests", "benchmarks", "docs") for p in (ROOT / top).rglob("*")
    }
    known |= {"turbodiffusion/", "tests/", "benchmarks/", "docs/"}
    assert named <= known, f"not in the checkout: {sorted(named - known)}"
