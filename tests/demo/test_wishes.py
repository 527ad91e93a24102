"""What people ask for first: a street of neon signs, a chase, petals, wind; drawn, and said in both languages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from turbodiffusion.demo.bake import CELL, COLUMNS, FRAMES
from turbodiffusion.demo.captions import caption, several
from turbodiffusion.demo.coverage import describe_gap
from turbodiffusion.demo.factors import NATURAL, WISHES, Factors, is_held_out, is_wished, lights, sample_factors
from turbodiffusion.demo.motion import camera_track, chase, subject_track
from turbodiffusion.demo.renderer import World
from turbodiffusion.demo.scenes import SCENES
from turbodiffusion.demo.subjects import BY_NAME, PREY, RELEASE, named

ROWS = named(RELEASE)
PROMPTS = (
    "一位时尚女性走在东京街头，街道两旁是温暖发光的霓虹灯",
    "一只橙色的猫在阳光明媚的花园里追逐蝴蝶",
    "樱花瓣随风飘落，女孩抬头微笑，镜头缓缓推进",
    "树叶随风摇摆，云层快速移动",
    "A stylish woman walks down a Tokyo street filled with warm glowing neon and animated city signage.",
    "an orange cat chases butterflies in a sunny garden",
    "Cherry petals fall in the wind, a girl looks up and smiles, the camera slowly pushes in",
    "leaves sway in the wind, clouds move fast",
)
CHASE = Factors("cat", NATURAL, "run", "right", "", "", "garden", "sunny", "", "", 3, "butterfly", 2)


def _sheet(colour: tuple[int, int, int]) -> np.ndarray:
    import io

    out = io.BytesIO()
    Image.new("RGBA", (COLUMNS * CELL, FRAMES // COLUMNS * CELL), (*colour, 255)).save(out, "WEBP", lossless=True)
    return np.frombuffer(out.getvalue(), np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("atlas") / "atlas.npz"
    sheets = {f"sheet/{name}": _sheet((255, 0, 255)) for name in ("cat", "butterfly", "woman")}
    np.savez(path, **sheets, **{"standing/woman": _sheet((0, 0, 255))})
    return World(path, size=(64, 64), frames=9, instances=1, scene_names=("meadow", "hill", "neon"))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_first_prompts_are_inside_the_world(prompt):
    assert describe_gap(prompt, ROWS) is None


def test_captions_of_the_release_are_inside_its_world():
    rng = np.random.default_rng(5)
    for clip in sample_factors(rng, 500, subjects=ROWS):
        for language in ("en", "zh", "mixed"):
            words = caption(clip, rng, language)
            assert describe_gap(words, ROWS) is None, words


def test_wishes_are_drawn_and_never_held_out():
    drawn = sample_factors(np.random.default_rng(0), 3000, subjects=ROWS)
    assert 0.03 < np.mean([is_wished(clip) for clip in drawn]) < 0.08
    for wish in WISHES:
        fits = [clip for clip in drawn if all(getattr(clip, key) == value for key, value in wish.items())]
        assert len(fits) > 20, wish
        assert not any(is_held_out(clip) for clip in fits)
    small = sample_factors(np.random.default_rng(0), 300, subjects=(BY_NAME["dog"], BY_NAME["cat"]))
    assert {clip.subject for clip in small} == {"dog", "cat"} and not any(clip.chased for clip in small)


def test_captions_use_the_words_of_the_first_prompts():
    rng = np.random.default_rng(1)
    woman = Factors("woman", NATURAL, "walk", "right", "", "", "neon", "", "", "", 0)
    girl = Factors("girl", NATURAL, "still", "", "", "", "cherry", "petals", "zoom in", "", 0)
    tree = Factors("tree", NATURAL, "still", "", "", "", "hill", "sunny", "", "", 0)
    for clip, chinese, english in (
        (
            woman,
            ("时尚女性", "走在", "东京街头", "街道两旁是温暖发光的霓虹灯"),
            ("stylish woman", "down a Tokyo street"),
        ),
        (CHASE, ("追逐蝴蝶", "追赶两只蝴蝶", "阳光明媚的花园里"), ("chases butterflies", "chasing butterflies")),
        (girl, ("樱花瓣随风飘落，", "抬头微笑", "镜头缓缓推进"), ("cherry petals fall in the wind, ", "pushes in")),
        (tree, ("树叶随风摇摆，云层快速移动",), ("leaves sway in the wind, clouds move fast",)),
    ):
        for language, phrases in (("zh", chinese), ("en", english)):
            said = " | ".join(caption(clip, rng, language) for _ in range(400))
            assert not [phrase for phrase in phrases if phrase not in said]
    one = " | ".join(caption(replace(CHASE, chased=1), rng, "en") for _ in range(60))
    assert "chases a butterfly" in one and "butterflies" not in one
    assert [several(name) for name in ("butterfly", "fish", "bee")] == ["butterflies", "fish", "bees"]
    for clip, name, place in ((tree, "tree", "windy hill"), (woman, "woman", "neon street")):  # evaluation prompts
        full = {caption(clip, rng, "en", full=True) for _ in range(60)}
        assert all(f" {name} " in f"{words} " and place in words for words in full)
        assert not any(also in words for words in full for also in ("stylish", "leafy", "both sides", "leaves sway"))


def test_petals_fall_where_trees_are():
    assert "petals" in lights("", "garden") and "petals" not in lights("", "sea")
    assert "petals" not in lights("pixel", "cherry") and "leaves" not in lights("black and white", "hill")
    assert lights("", "cherry").count("petals") > lights("", "garden").count("petals") == 1
    assert set(lights("", "desert")) == {"sunny", "sunset", "night", "fog", "rain", "snow"}


@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize("prey", sorted(set(PREY)))
def test_the_chased_flee_ahead(direction, prey):
    clip = replace(CHASE, direction=direction, second=prey)
    rng = np.random.default_rng(2)
    track = subject_track(clip, 33, 1.0, camera_track("", 33, rng), rng)
    track, fleeing = chase(clip, replace(clip, subject=prey, second="", chased=0), track, 1.0, rng)
    way = 1 if direction == "right" else -1
    assert len(fleeing) == 2 and (np.diff(track.x) * way > 0).all()
    for other in fleeing:
        assert (way * (other.x - track.x) > 0.5 * track.extent).all()  # never caught
        assert other.extent.max() < 0.7 * track.extent.min()
        assert (np.abs(other.x) < 1.2).mean() > 0.6  # seen most of the time
    facing = BY_NAME[prey].facing
    assert facing == "front" or (fleeing[0].flip == (-way if facing == "left" else way)).all()


def test_chase_is_drawn(world):
    clip = replace(CHASE, scene="meadow", light="fog")
    alone, two = world.render([replace(clip, second="", chased=0), clip])
    pink = [((v[0] - v[1]) > 0.8).flatten(1).sum(1).float() for v in (alone, two)]
    assert pink[1].max() > 0.7 * pink[0].max() and not torch.equal(pink[0], pink[1])
    columns = ((two[0, 4] - two[1, 4]) > 0.8).any(0).nonzero()[:, 0]
    alone_columns = ((alone[0, 4] - alone[1, 4]) > 0.8).any(0).nonzero()[:, 0]
    assert columns.max() - columns.min() > alone_columns.max() - alone_columns.min()


def test_standing_people_are_drawn_standing(world):
    def blue(motion, direction=""):
        clip = Factors("woman", NATURAL, motion, direction, "", "", "meadow", "sunny", "", "", 1)
        frame = world.render([clip])[0, :, 4]
        return ((frame[2] - frame[0]) > 1.5).sum() > 20

    assert blue("still") and blue("approach") and not blue("walk", "left") and not blue("circle")


def test_wind_moves_tops_and_clouds_but_not_the_ground(world):
    clip = Factors("cat", NATURAL, "walk", "right", "", "", "hill", "sunny", "", "", 1)
    calm, windy = (world.render([replace(clip, scene=scene)])[0] for scene in ("meadow", "hill"))
    moved_calm, moved_windy = (v.diff(dim=1).abs().amax((0, 1))[:10] for v in (calm, windy))
    assert moved_calm.max() == 0 and (moved_windy > 0.05).float().mean() > 0.1  # the sky
    assert windy[:, :, -4:, -8:].diff(dim=1)[:, 0].abs().max() < 1e-5  # the ground, before the cat comes
    together = world.render([replace(clip, scene="meadow"), clip])
    assert torch.equal(together[0], calm) and torch.equal(together[1], windy)


def test_petals_and_leaves_fall_and_are_coloured(world):
    clip = Factors("cat", NATURAL, "still", "", "", "", "meadow", "petals", "", "", 1)
    petals, leaves = world.render([clip, replace(clip, light="leaves")])
    assert petals.diff(dim=1).abs().amax((0, 1))[:20].mean() > 0.1
    redness = [(v[0] - v[2]).mean() for v in (petals, leaves)]
    assert redness[1] > redness[0] + 0.1
    # The light flecks of a frame are found again in the next one, lower and further to the left.
    light = (petals[1, :, :28] - petals[1, :, :28].median(0).values).clamp_min(0)
    far = {
        (dx, dy): (
            light[2, : 28 - dy, max(0, -dx) : 64 - max(0, dx)] * light[3, dy:, max(0, dx) : 64 + min(0, dx)]
        ).mean()
        for dx in (-2, -1, 0, 1, 2)
        for dy in (0, 1, 2, 3)
    }
    best = max(far, key=lambda shift: float(far[shift]))
    assert best[0] <= 0 < best[1], best


def test_a_neon_street_is_a_night_of_bright_signs(world):
    clip = Factors("cat", NATURAL, "still", "", "", "", "neon", "", "", "", 1)
    frame = world.render([clip])[0, :, 4]
    assert frame[:, :8].mean() < -0.5  # a dark sky
    bright = frame.amax(0) > 0.8
    vivid = bright & ((frame.amax(0) - frame.amin(0)) > 1.0)
    assert 0.03 < vivid.float().mean() < 0.4
    assert not SCENES["neon"].lights
