"""What a prompt asks for beyond the demo world: silence for what it has, the nearest by meaning for the rest."""

import json
import re
from pathlib import Path

import pytest

from turbodiffusion.demo import near
from turbodiffusion.demo.coverage import describe_gap, unknown_words
from turbodiffusion.demo.subjects import named
from turbodiffusion.texts import catalogue
from turbodiffusion.training.sample_grid import PROMPTS, VARIED

ROOT = Path(__file__).parents[2]
SHIPPED = named(json.loads((ROOT / "turbodiffusion/demo/model/model.json").read_text())["about"]["subjects"])


def examples() -> list[str]:
    """The prompts of our pages and our help that name no other model."""
    found = [*PROMPTS, VARIED, "a red balloon rises over a green meadow"]
    for page in ("README.md", "README.zh.md"):
        lines = [line for line in (ROOT / page).read_text().splitlines() if "--model" not in line]
        found += re.findall(r'(?:generate |prompt=)"([^".][^"]*)"', "\n".join(lines))
    for lang in ("en", "zh"):
        said = "\n".join(catalogue(lang).values())
        lines = [line for line in said.splitlines() if "--model" not in line and "{prompt}" not in line]
        found += re.findall(r'generate "([^"]+)"', "\n".join(lines))
    return sorted(set(found))


@pytest.mark.parametrize("prompt", examples())
def test_our_own_examples_are_inside_the_world(prompt):
    assert describe_gap(prompt, SHIPPED) is None


@pytest.mark.parametrize(
    "prompt",
    [
        "一条鱼在水里游",
        "一条蓝色的鱼在水下向右游",
        "a brown horse gallops",
        "horses galloping",
        "the balloon is rising",
        "一只红气球升起",
        "一只猫在花园里，缓缓推进",
        "一只猫在花园里，环绕拍摄",
        "the cat was running",
        "a cat ran and jumped",
        "dogs chased cats",
        "the plane flew away",
    ],
)
def test_inflections_and_other_words_for_the_same_are_known(prompt):
    assert unknown_words(prompt, SHIPPED) == []


@pytest.mark.parametrize(
    ("prompt", "unknown", "nearest"),
    [
        ("a cat sleeps", "sleeps", "stands still"),
        ("a cat is sleeping", "sleeping", "stands still"),
        ("a cat surfs", "surfs", "swims"),
        ("一只猫坐着", "坐", "站着不动"),
        ("a dog frobnicates", "frobnicates", "walks, runs, jumps"),
        ("a car moves happily", "happily", "slowly, quickly"),
        ("drone view of a car", "drone", "camera pans left"),
        ("一辆汽车，无人机", "无人机", "镜头向左平移"),
        ("a cat swims in a lake", "lake", "sea"),
        ("a wolf runs", "wolf", "cat, dog"),
        ("一只狼在跑", "狼", "猫、狗"),
        ("a kitten runs", "kitten", "cat"),
        ("a pink lorry drives", "lorry", "car"),
        ("a red rose on a meadow", "rose", "models demo"),
    ],
)
def test_nearest_by_meaning_and_kind_of_word(prompt, unknown, nearest):
    notice = describe_gap(prompt, SHIPPED) or ""
    assert unknown in notice and nearest in notice


def test_nothing_is_named_where_nothing_is_near():
    assert describe_gap("a cat on a sofa", SHIPPED) == (
        "the demo model does not know: sofa; `turbodiffusion models demo` lists what it knows"
    )
    assert "`turbodiffusion models demo`" in (describe_gap("夕阳", SHIPPED) or "")


def test_bases():
    for word, base in (("running", "run"), ("chased", "chase"), ("hurried", "hurry"), ("flies", "fly"), ("ran", "run")):
        assert base in near.bases(word)
