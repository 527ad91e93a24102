"""The judge: that it learns, sees time, is marked as it says, and comes back from disk as it was."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from turbodiffusion.demo.factors import CLASSES, Factors
from turbodiffusion.errors import CheckpointError, MissingFilesError, UserError
from turbodiffusion.evaluation.judge import (
    LOOK_ALIKES,
    Probe,
    ProbeBank,
    ProbeConfig,
    ProbeRecipe,
    _shifted,
    augment,
    grade,
    label_indices,
    load_probe,
    mirrored,
    preprocess,
    probe_config,
    same_movement,
    save_probe,
)

# Paints worlds and trains: too long for make test-fast.
pytestmark = pytest.mark.slow

FISH = Factors("fish", "natural", "fly", "left", "", "", "underwater", "", "", "", 3)


def test_it_learns_thirty_two_clips(overfitted) -> None:
    probe, bank, _ = overfitted
    answers, features = probe.read_views(bank.view)
    right = grade(answers, bank.answers.numpy(), probe.config, strict=True)
    assert {factor: marked.mean() for factor, marked in right.items() if marked.mean() < 0.95} == {}
    # calibrated on these very clips
    torch.testing.assert_close(features.mean(0), torch.zeros(64), rtol=0, atol=1e-3)
    torch.testing.assert_close(features.std(0), torch.ones(64), rtol=1e-3, atol=0)


def test_the_order_of_frames_is_seen(overfitted) -> None:
    probe, bank, _ = overfitted
    (_, forwards), (_, backwards) = probe.read_views(bank.view), probe.read_views(bank.view.flip(2))
    assert (forwards - backwards).abs().mean() > 0.05  # of a deviation; 0 where frames are only pooled


def test_it_comes_back_from_disk(overfitted, tmp_path) -> None:
    probe, bank, run = overfitted
    again = load_probe(run)
    assert again.config == probe.config and not again.training
    for mine, theirs in zip(again.read_views(bank.view), probe.read_views(bank.view), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(MissingFilesError, match="train probe"):
        load_probe(tmp_path / "none")
    (tmp_path / "probe.safetensors").write_bytes(b"not a probe")
    with pytest.raises(CheckpointError, match="train it again"):
        load_probe(tmp_path)
    wide = Probe(replace(probe.config, widths=(8, 16, 32, 32, 64)))
    save_probe(wide, tmp_path)
    assert load_probe(tmp_path).config.widths[-1] == 64


def test_the_full_size_has_one_to_three_million_parameters() -> None:
    config = ProbeConfig(tuple(CLASSES.items()), (256, 256), 33)
    probe = Probe(config)
    assert 1e6 < sum(p.numel() for p in probe.parameters()) < 3e6
    assert probe.hidden.out_features <= 64
    with pytest.raises(ValueError, match="at most 64"):
        replace(config, features=65)
    with pytest.raises(ValueError, match="multiple of 32"):
        replace(config, side=100)


def test_look_alikes_are_symmetric_and_what_they_say() -> None:
    movements = [*product(CLASSES["motion"], CLASSES["camera"])]
    assert set().union(*LOOK_ALIKES) <= set(movements)
    for a, b in product(movements, movements):
        assert same_movement(a, b) == same_movement(b, a)
    assert all(same_movement(a, a) for a in movements)
    assert same_movement(("approach", ""), ("still", "zoom in"))
    assert same_movement(("recede", ""), ("still", "zoom out"))
    assert same_movement(("walk left", ""), ("still", "pan right"))
    for a, b in (
        (("approach", ""), ("still", "zoom out")),
        (("approach", ""), ("recede", "")),
        (("walk left", ""), ("run left", "")),  # two that look like a third are still two
        (("walk left", ""), ("still", "pan left")),
        (("still", ""), ("still", "zoom in")),
    ):
        assert not same_movement(a, b)


def test_panned_and_travelled_clips_do_look_alike(small_world) -> None:
    """The table's directions against the renderer: the blue fish crosses the view the same way in both."""

    def drift(clip: Factors) -> float:
        video = small_world.render([clip])[0]
        blue = (video[2] - video[0]).clamp_min(0) * (video[2] > 0.2)
        still = small_world.render([replace(clip, subject="octopus")])[0]
        blue = blue * ((video - still).abs().sum(0) > 0.3)
        x = (blue.sum(1) * torch.arange(64.0)).sum(1) / blue.sum((1, 2)).clamp_min(1e-6)
        return float(x[-1] - x[0])

    assert drift(FISH) < -5
    assert drift(replace(FISH, motion="still", direction="", camera="pan right")) < -5
    assert drift(replace(FISH, motion="still", direction="", camera="pan left")) > 5


def test_marks_are_given_where_they_count(small_world) -> None:
    config = probe_config(small_world)
    near = replace(FISH, motion="approach", direction="")
    zoomed = replace(FISH, motion="still", direction="", camera="zoom in")
    grey = replace(FISH, style="sketch")  # no colour can be told
    right = label_indices([near, zoomed, FISH, grey], config)
    assert [config.answers("colour")[k] for k in right[:, config.questions.index("colour")]] == ["blue"] * 3 + [
        "natural"
    ]
    given = grade(right[[1, 0, 1, 2]], right, config)
    assert given["motion"].tolist() == given["camera"].tolist() == [True, True, False, True]
    assert given["colour"].tolist() == [True] * 3  # the grey clip does not count
    strict = grade(right[[1, 0, 1, 2]], right, config, strict=True)
    assert strict["motion"].tolist() == [False, False, False, True]
    wrong = right.copy()
    wrong[:, config.questions.index("subject")] = (right[:, 0] + 1) % 3
    assert grade(wrong, right, config)["subject"].sum() == 0


def test_only_what_occurs_is_asked(small_world) -> None:
    config = probe_config(small_world)
    assert config.answers("subject") == ("fish", "octopus", "sailboat")
    assert config.answers("scene") == ("sea", "underwater")
    assert "fall" not in config.answers("motion") and {"still", "walk left", "fly up"} <= set(config.answers("motion"))
    with pytest.raises(UserError, match="without cat"):
        label_indices([replace(FISH, subject="cat")], config)


def test_it_looks_at_frames_spread_over_the_clip() -> None:
    config = ProbeConfig((), (64, 64), 33, side=32, frames=9)
    video = torch.linspace(-1, 1, 33).view(1, 1, 33, 1, 1).expand(2, 3, 33, 64, 64)
    view = preprocess(video, config)
    assert view.shape == (2, 3, 9, 32, 32) and view.dtype == torch.uint8
    assert view[0, 0, :, 0, 0].tolist() == [round(k * 255 / 8) for k in range(9)]
    checks = torch.zeros(1, 3, 1, 64, 64)
    checks[..., ::2, ::2] = 1  # a quarter of the pixels
    assert (preprocess(checks, replace(config, frames=1)) == 159).all()  # 0.25 in [-1, 1]


def test_channels_shift_in_time() -> None:
    x = torch.arange(2 * 3 * 16).view(6, 16, 1, 1).float()  # two clips of three frames, 16 channels
    y = _shifted(x, 3)
    clips, moved = x.view(2, 3, 16), y.reshape(2, 3, 16)
    assert torch.equal(moved[..., 4:], clips[..., 4:])
    assert torch.equal(moved[:, 1:, :2], clips[:, :-1, :2]) and (moved[:, 0, :2] == 0).all()
    assert torch.equal(moved[:, :-1, 2:4], clips[:, 1:, 2:4]) and (moved[:, -1, 2:4] == 0).all()


def test_mirror_images_are_labelled_as_what_they_show(small_world) -> None:
    config = probe_config(small_world)
    turned = mirrored(config)
    for question, answers in config.classes:
        assert [turned[question][k] for k in turned[question]] == list(range(len(answers)))
    pans = replace(FISH, camera="pan left")
    other = replace(FISH, direction="right", camera="pan right")
    a, b = label_indices([pans, other], config)
    assert [turned[q][k] for q, k in zip(config.questions, a, strict=True)] == b.tolist()


def test_augmentation(small_world) -> None:
    config = probe_config(small_world)
    view = torch.randint(0, 256, (4, 3, 5, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = torch.from_numpy(label_indices([replace(FISH, camera="pan left")] * 4, config))
    none = ProbeRecipe(flip=0, freeze=0, blur=0, noise=0, light=0)

    def run(recipe: ProbeRecipe) -> tuple[torch.Tensor, torch.Tensor]:
        return augment(view, answers, config, recipe, torch.Generator().manual_seed(1))

    x, same = run(none)
    torch.testing.assert_close(x, view / 127.5 - 1, rtol=0, atol=1e-6)
    assert torch.equal(same, answers)
    flipped, swapped = run(replace(none, flip=1))
    assert torch.equal(flipped, x.flip(-1))
    camera, motion = config.questions.index("camera"), config.questions.index("motion")
    assert config.answers("camera")[swapped[0, camera]] == "pan right"
    frozen, still = run(replace(none, freeze=1))
    assert (frozen == frozen[:, :, :1]).all()
    assert config.answers("motion")[still[0, motion]] == "still" and config.answers("camera")[still[0, camera]] == ""
    for changed in (replace(none, blur=1), replace(none, noise=0.1), replace(none, light=0.1)):
        y, same = run(changed)
        assert 0 < (y - x).square().mean() < 0.5 and torch.equal(same, answers)


def test_the_bank_holds_what_belongs_to_its_step(small_world) -> None:
    recipe = ProbeRecipe(first=4, size=6, refresh=2, held_out=0.5)
    config = replace(probe_config(small_world), side=32, frames=3)
    walked, jumped = (ProbeBank(small_world, config, recipe, None, seed=1) for _ in range(2))
    for step in range(4):
        walked.advance(step)
    jumped.advance(3)
    assert walked.end == jumped.end == 10
    assert torch.equal(walked.view, jumped.view) and torch.equal(walked.answers, jumped.answers)
    views, answers = walked.batch(np.random.default_rng(0), 5)
    assert views.shape == (5, 3, 3, 32, 32) and answers.shape == (5, 6)
