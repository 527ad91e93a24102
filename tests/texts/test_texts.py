"""The catalogue: the same codes and parameters in both languages, and in the source as in the catalogue."""

import ast
import pickle
import re
import string
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from turbodiffusion import errors
from turbodiffusion.cli.options import OPTIONS
from turbodiffusion.errors import RequestError, UserError
from turbodiffusion.texts import LANGUAGES, catalogue, language, set_language, text

ROOT = Path(__file__).parents[2] / "turbodiffusion"
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, UserError)}
# Where an error is still a plain sentence. Convert one, and take it from here; with the last the fallback in errors.py
# goes too.
PLAIN = {
    "cli/train.py",
    "demo",
    "evaluation",
    "inference",
    "training",
}
HAN = re.compile(r"[\u4e00-\u9fff]")


def parameters(sentence: str) -> set[str]:
    return {name.split(".")[0] for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def codes_of(argument: ast.expr) -> list[str] | None:
    """The codes that a first argument may be, None for what is known at run time alone."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return [argument.value]
    if isinstance(argument, ast.IfExp):
        return (codes_of(argument.body) or []) + (codes_of(argument.orelse) or [])
    if isinstance(argument, ast.JoinedStr | ast.BinOp):
        return [ast.unparse(argument)]
    return None


def dynamic_group(argument: ast.expr) -> str | None:
    """The group of `f"stage.{stage}"`."""
    if isinstance(argument, ast.JoinedStr) and isinstance(first := argument.values[0], ast.Constant):
        group, dot, rest = str(first.value).partition(".")
        return group if dot and not rest else None
    return None


def calls(source: str) -> Iterator[ast.Call]:
    """Each making of an error or a text that has a first argument."""
    for node in ast.walk(ast.parse(source)):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if named and node.args and node.func.id in ERRORS | {"text"}:
            yield node


def faults(source: str) -> list[str]:
    """Codes that the catalogue lacks (plain sentences among them) and parameters that are not the sentence's."""
    known, found = catalogue("en"), []
    groups = {code.split(".")[0] for code in known}
    for call in calls(source):
        if dynamic_group(call.args[0]) in groups:
            continue
        codes = codes_of(call.args[0]) or []
        found += [f"line {call.lineno}: no code {code}" for code in codes if code not in known]
        needed = {name for code in codes if code in known for name in parameters(known[code])}
        given = {keyword.arg for keyword in call.keywords}
        if codes and all(code in known for code in codes) and None not in given and given != needed:
            found.append(f"line {call.lineno}: {codes} have {sorted(needed)}, not {sorted(given)}")
    return found


def used(sources: dict[str, str]) -> set[str]:
    """The codes that stand anywhere in the source, whole or as a group of which one is taken by name."""
    known, found = set(catalogue("en")), {f"option.{name}" for name in OPTIONS}
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif (group := dynamic_group(node)) is not None and group != "option":
                found |= {code for code in known if code.startswith(f"{group}.")}
    return found


def test_both_languages_have_the_same_codes_and_parameters():
    english, chinese = (catalogue(lang) for lang in LANGUAGES)
    assert list(english) == list(chinese)
    for code, sentence in english.items():
        assert parameters(sentence) - {"s"} == parameters(chinese[code]), code  # s: the plural, which Chinese has not


def test_chinese_sentences_are_chinese():
    same = {code for code, sentence in catalogue("zh").items() if sentence == catalogue("en")[code]}
    assert same == {"error.internal", "memory.name"}
    for code, sentence in catalogue("zh").items():
        if parameters(sentence) == set() and code not in {"option.gap"}:
            assert HAN.search(sentence), code


def package(path: str) -> str:
    return path if path in PLAIN else path.split("/")[0]


@pytest.mark.parametrize("path", SOURCES)
def test_errors_and_texts_of_a_file_are_in_the_catalogue(path):
    if package(path) not in PLAIN:
        assert faults(SOURCES[path]) == []


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_what_is_listed_as_plain_still_is(name):
    assert any(faults(source) for path, source in SOURCES.items() if package(path) == name), f"{name}: take it out"


def test_no_sentence_is_left_unused():
    assert set(catalogue("en")) - used(SOURCES) - {"error.internal"} == set()


@pytest.mark.parametrize(
    "line",
    [
        'raise RequestError("no such code")',
        'raise RequestError(f"{name} is missing")',
        'raise RequestError("request.prompt_empty", name=1)',
        'raise UserError("request.seed", value=1)',
        'x = text("request.no_such_code")',
        'x = text("request.prompt_empty" if x else "a sentence")',
    ],
)
def test_a_fault_is_found(line):
    assert len(faults(line)) == 1
    assert used({"x.py": line}) & {"request.shift", "stage.load"} == set()


def test_a_text_is_rendered_in_the_language_of_the_moment():
    inner = text("preset.did_you_mean", name="480p")
    outer = text("preset.resolution", name="48p", hint=inner, known=["480p", "720p"])
    assert str(outer) == "unknown resolution '48p': did you mean '480p'? there are 480p, 720p, or a size as 854x480"
    assert "是否想用 '480p'？" in outer.render("zh") and "480p、720p" in outer.render("zh")
    with pytest.raises(KeyError):
        text("request.none").render("en")


def test_the_language_is_chosen_or_of_the_environment(monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert language() == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language() == "zh"
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert language() == "en"
    set_language("zh")
    try:
        assert language() == "zh"
        other: list[str] = []
        thread = threading.Thread(target=lambda: other.append(language()))
        thread.start()
        thread.join()
        assert other == ["en"]  # a choice is a thread's own
    finally:
        set_language(None)
    assert language() == "en"


def test_an_error_goes_to_another_process_with_its_code_and_parameters():
    error = RequestError("request.seed", value=-1, high=9)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RequestError and copy.code == "request.seed"
    assert str(copy) == str(error) == "seed -1: 0 (draw one) to 9"
    assert copy.text.render("zh") == "seed -1：应为 0（随机抽取）到 9"
