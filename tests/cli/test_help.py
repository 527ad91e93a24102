"""Help: every option whole at any width, in both languages, with the defaults of the models."""

import pytest
from rich.cells import cell_len

from turbodiffusion.cli import main as cli
from turbodiffusion.cli.options import OPTIONS
from turbodiffusion.request import field_specs


def shown(capsys, monkeypatch, *arguments: str, width: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("command", ["generate", "again"])
def test_every_option_is_whole(capsys, monkeypatch, command, width, lang):
    out = shown(capsys, monkeypatch, command, "--help", "--lang", lang, width=width)
    words = out.split()
    for spec in field_specs():
        if spec.name not in ("prompt", "ode"):
            assert "--" + spec.name.replace("_", "-") in words
    assert "--contact-sheet" in words and "…" not in out
    assert max(map(cell_len, out.splitlines())) <= width


def test_the_language_is_an_option_before_or_after_the_command_or_that_of_the_environment(capsys, monkeypatch):
    english = shown(capsys, monkeypatch, "generate", "--help")
    assert "Classifier-free guidance scale" in english
    chinese = shown(capsys, monkeypatch, "--lang", "zh", "generate", "--help")
    assert "无分类器引导" in chinese and "用法" in chinese and "Number of frames" not in chinese
    assert shown(capsys, monkeypatch, "generate", "--lang=zh", "--help") == chinese
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert shown(capsys, monkeypatch, "generate", "--help") == chinese
    assert shown(capsys, monkeypatch, "generate", "--help", "--lang", "en") == english


def test_a_language_that_there_is_not(capsys):
    assert cli.main(["--lang", "fr", "models"]) == 2
    assert "there are en, zh" in capsys.readouterr().err
    assert cli.main(["models", "--lang"]) == 2
    assert "en, zh" in capsys.readouterr().err


def test_a_prompt_that_looks_like_the_option_is_a_prompt(capsys):
    assert cli.main(["generate", "--prompts-file", "none.txt", "--", "--lang"]) == 2
    assert "not both" in capsys.readouterr().err


def test_help_tells_the_defaults(capsys, monkeypatch):
    from turbodiffusion.inference.model_source import resolve_model

    out = shown(capsys, monkeypatch, "generate", "--help", width=200)
    lines = {line.split()[0]: line for line in out.splitlines() if line.lstrip().startswith("--")}
    demo = resolve_model("demo").preset
    for option in ("resolution", "aspect_ratio", "num_frames", "num_steps", "guidance", "shift"):
        value = getattr(demo, option)
        shown_value = f"{value:g}" if isinstance(value, float) else value
        assert f"demo {shown_value}" in lines["--" + option.replace("_", "-")]
    assert "Default: 4; demo 30." in lines["--num-steps"]
    assert "Default: 80; wan2.2-i2v-a14b 200." in lines["--sigma-max"]
    assert "One of auto, original, sla, sage, sagesla." in lines["--attention-type"]


def test_no_option_describes_itself_by_its_code():
    for name, option in OPTIONS.items():
        for lang in ("en", "zh"):
            assert option.spec.help.render(lang) != option.spec.help.code, name


@pytest.mark.parametrize(
    "command", [[], ["again"], ["info"], ["convert"], ["models"], ["bench"], ["warmup"], ["train"]]
)
def test_every_command_has_help(capsys, monkeypatch, command):
    out = shown(capsys, monkeypatch, *command, "--help")
    assert "--lang en|zh" in out and "cli." not in out
