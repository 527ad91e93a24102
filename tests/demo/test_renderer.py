import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from turbodiffusion.demo import preview
from turbodiffusion.demo.bake import CELL, COLUMNS, FRAMES, bake_sheet, find_subject, loop_indices
from turbodiffusion.demo.factors import NATURAL, Factors, sample_factors
from turbodiffusion.demo.renderer import World
from turbodiffusion.demo.scenes import SCENES, paint_scene
from turbodiffusion.demo.subjects import BY_NAME, SUBJECTS
from turbodiffusion.errors import MissingFilesError, UserError

BALL = Factors("pig", NATURAL, "walk", "right", "", "", "meadow", "fog", "", "", 5)


def _pink_disc() -> bytes:
    """An animated picture of a pink disc whose left half, where it looks, is darker."""
    frames = []
    for _ in range(4):
        frame = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(frame).ellipse((8, 8, 56, 56), fill=(255, 60, 160, 255))
        ImageDraw.Draw(frame).pieslice((8, 8, 56, 56), 90, 270, fill=(200, 20, 110, 255))
        frames.append(frame)
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return out.getvalue()


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """An atlas in the baked format whose every subject is the pink disc."""
    sheet = np.frombuffer(bake_sheet(BY_NAME["pig"], _pink_disc()), np.uint8)
    path = tmp_path_factory.mktemp("atlas") / "atlas.npz"
    np.savez(path, recipe=np.array("test"), **{f"sheet/{row.name}": sheet for row in SUBJECTS})
    return path


@pytest.fixture(scope="module")
def world(atlas):
    return World(atlas, size=(64, 64), frames=9, instances=1, scene_names=("meadow", "space"))


def _centres(video: torch.Tensor) -> np.ndarray:
    """The mean x of strongly pink pixels in each frame of [3, F, H, W]; NaN where there are none."""
    pink = ((video[0] - video[1]) > 0.6).float().sum(1)  # [F, W]
    return (pink * torch.arange(pink.shape[1])).sum(1).numpy() / np.maximum(pink.sum(1).numpy(), 1e-9)


def test_shape_range_and_repeatability(world):
    clips = [BALL, replace(BALL, direction="left", scene="space", light="")]
    video = world.render(clips)
    assert video.shape == (2, 3, 9, 64, 64) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1 and video.std() > 0.1
    assert torch.equal(video, world.render(clips))
    assert torch.equal(video[1:], world.render(clips[1:]))  # a clip does not depend on its neighbours


def test_directions_are_drawn(world):
    right, left = world.render([BALL, replace(BALL, direction="left")])
    assert (np.diff(_centres(right)) > 0).all()
    assert (np.diff(_centres(left)) < 0).all()


def test_subject_faces_the_way_it_moves(world):
    """The disc's dark half is drawn on the left and faces left: walking right it must be on the right."""
    for direction in ("left", "right"):
        frame = world.render([replace(BALL, direction=direction)])[0, :, 4]
        pink = (frame[0] - frame[1]) > 0.6
        columns = torch.arange(64).expand(64, 64)[pink].float()
        red = frame[0][pink]
        dark_side = columns[red < red.mean()].mean() - columns[red > red.mean()].mean()
        assert (dark_side > 0) == (direction == "right")


def test_colour_repaints(world):
    blue = world.render([replace(BALL, colour="blue")])[0, :, 4]
    natural = world.render([BALL])[0, :, 4]
    changed = (blue - natural).abs().sum(0) > 0.5
    assert changed.float().mean() > 0.05
    assert (blue[2] - blue[0])[changed].mean() > 0.4 > (natural[2] - natural[0])[changed].mean()


def test_approach_grows_and_recede_shrinks(world):
    def area(video):
        return ((video[0] - video[1]) > 0.6).float().sum((1, 2))

    grow, shrink = (
        area(v) for v in world.render([replace(BALL, motion=m, direction="") for m in ("approach", "recede")])
    )
    assert grow[-1] > 3 * grow[0] and shrink[0] > 3 * shrink[-1]


def test_styles(world):
    grey, sketch, pixel = world.render([replace(BALL, style=s) for s in ("black and white", "sketch", "pixel")])
    for video in (grey, sketch):
        assert torch.equal(video[0], video[1]) and torch.equal(video[1], video[2])
    assert (sketch > 0).float().mean() > 0.8  # mostly paper
    blocks = pixel.unfold(2, 4, 4).unfold(3, 4, 4)
    assert (blocks.amax((-1, -2)) - blocks.amin((-1, -2))).max() < 1e-6


def test_second_subject_is_drawn_beside_the_first(world):
    alone, both = world.render([replace(BALL, motion="still", direction="", second=s) for s in ("", "cow")])
    pink = [((video[0, 4] - video[1, 4]) > 0.6).any(0).nonzero()[:, 0] for video in (alone, both)]
    assert pink[1].max() - pink[1].min() > 1.3 * (pink[0].max() - pink[0].min())


def test_moving_and_still_cameras_in_one_batch(world):
    """Scenes of still cameras are drawn once for all frames: the same as frame by frame."""
    clips = [replace(BALL, light="night"), replace(BALL, camera="pan left"), BALL]
    for clip, video in zip(clips, world.render(clips), strict=True):
        assert torch.equal(video, world.render([clip])[0])
    together, _ = world._render(clips)  # one batch: the still ones are drawn frame by frame too
    assert (together - world.render(clips)).abs().max() < 1e-4  # float32 sampling in another shape


def test_random_clips_of_every_motion(world):
    clips = [replace(c, scene="meadow", light=c.light or "rain") for c in sample_factors(np.random.default_rng(0), 24)]
    assert torch.isfinite(world.render(clips)).all()


def test_a_small_atlas_makes_a_small_world(atlas, tmp_path):
    with np.load(atlas) as full:
        np.savez(tmp_path / "small.npz", **{f"sheet/{name}": full[f"sheet/{name}"] for name in ("cat", "dog")})
    world = World(tmp_path / "small.npz", size=(32, 32), frames=5, instances=1, scene_names=("meadow",))
    drawn = world.sample_factors(np.random.default_rng(0), 200)
    assert {clip.subject for clip in drawn} == {"cat", "dog"} and {clip.second for clip in drawn} == {"", "cat", "dog"}


@pytest.mark.slow
def test_wide_views(atlas):
    video = World(atlas, size=(48, 80), frames=5, instances=1, scene_names=("meadow",)).render([BALL])
    assert video.shape == (1, 3, 5, 48, 80)


def test_scenes_differ_by_name_and_seed_and_cover_the_canvas():
    painted = {name: paint_scene(name, 0) for name in ("snow", "city")}
    assert np.array_equal(painted["city"], paint_scene("city", 0))
    assert not np.array_equal(painted["city"], paint_scene("city", 1))
    for layers in painted.values():
        assert (layers[:, :3].max(1) <= layers[:, 3].astype(int) + 1).all()  # premultiplied; 1 is the rounding
        assert layers[2, 3, -20:].min() == 255  # there is ground at the lower edge
    assert set(painted) <= set(SCENES)


def test_loops():
    assert loop_indices(72, (0.0, 1.0))[:3] == [0, 1, 3]
    window = loop_indices(73, (0.0, 0.5))
    assert window[0] == 0 and max(window) == 36 and len(window) == FRAMES
    assert np.abs(np.subtract(window[1:], window[:0:-1])).max() <= 1  # to and fro; halves round to even


def test_baked_sheet_fills_its_cells():
    sheet = np.asarray(Image.open(io.BytesIO(bake_sheet(BY_NAME["pig"], _pink_disc()))))
    assert sheet.shape == (FRAMES // COLUMNS * CELL, COLUMNS * CELL, 4)
    alpha = sheet[:CELL, :CELL, 3] > 128
    assert alpha.any(0).sum() > 0.9 * CELL and alpha.any(1).sum() > 0.9 * CELL


def test_errors_name_what_works(atlas, tmp_path):
    with pytest.raises(MissingFilesError, match=r"turbodiffusion\.demo\.bake"):
        World(tmp_path / "atlas.npz")
    with pytest.raises(UserError, match="multiples of 16"):
        World(atlas, size=(60, 64))
    np.savez(tmp_path / "old.npz", recipe=np.array("old"))
    with pytest.raises(UserError, match="nearest: cat"):
        find_subject("cap")
    with pytest.raises(MissingFilesError, match="bake it again"):
        World(tmp_path / "old.npz")
    (tmp_path / "cut.npz").write_bytes(atlas.read_bytes()[:1000])
    with pytest.raises(MissingFilesError, match="cut off: bake it again"):
        World(tmp_path / "cut.npz")


def test_preview_without_an_atlas_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["preview", "--atlas", str(tmp_path / "atlas.npz")])
    with pytest.raises(SystemExit, match=r"^2$"):
        preview.main()
    assert "bake it with `python -m turbodiffusion.demo.bake" in capsys.readouterr().err


def test_masks_follow_the_subject(world):
    video, mask = world.render_with_masks([BALL])
    assert torch.equal(video, world.render([BALL])) and mask.shape == (1, 9, 8, 8)
    columns = (mask[0].sum(1) * (torch.arange(8) * 8 + 3.5)).sum(1) / mask[0].sum((1, 2)).clamp_min(1e-9)
    seen = mask[0].sum((1, 2)) > 4
    assert seen.sum() >= 4
    assert (columns.numpy() - _centres(video[0]))[seen.numpy()] == pytest.approx(0, abs=6)
