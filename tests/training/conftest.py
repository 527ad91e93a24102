"""A small world for the judge: three subjects that differ in shape and colour, two scenes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

SHAPES = {"fish": (60, 120, 255), "octopus": (255, 130, 40), "sailboat": (250, 210, 40)}


def _picture(name: str) -> bytes:
    frame = Image.new("RGBA", (64, 64))
    pen = ImageDraw.Draw(frame)
    if name == "fish":
        pen.ellipse((6, 20, 58, 44), fill=(*SHAPES[name], 255))
    elif name == "octopus":
        pen.rectangle((10, 10, 54, 54), fill=(*SHAPES[name], 255))
    else:
        pen.polygon([(4, 60), (60, 60), (32, 4)], fill=(*SHAPES[name], 255))
    out = io.BytesIO()
    frame.save(out, "WEBP", save_all=True, append_images=[frame], lossless=True)
    return out.getvalue()


@pytest.fixture(scope="session")
def small_atlas(tmp_path_factory) -> Path:
    """An atlas in the baked format; its subjects live under water and on the sea."""
    from turbodiffusion.demo.bake import bake_sheet
    from turbodiffusion.demo.subjects import BY_NAME

    path = tmp_path_factory.mktemp("judge") / "atlas.npz"
    sheets = {f"sheet/{name}": np.frombuffer(bake_sheet(BY_NAME[name], _picture(name)), np.uint8) for name in SHAPES}
    np.savez(path, recipe=np.array("test"), **sheets)
    return path


@pytest.fixture(scope="session")
def small_world(small_atlas):
    """The size and length of the tiny model's videos."""
    from turbodiffusion.demo.renderer import World

    return World(small_atlas, size=(64, 64), frames=5, instances=1, scene_names=("underwater", "sea"))


@pytest.fixture(scope="session")
def overfitted(small_world, tmp_path_factory):
    """(probe, bank of 32 clips that it was trained on, its run's folder)."""
    from dataclasses import replace

    from turbodiffusion.training.probe import ProbeBank, ProbeRecipe, probe_config, train_probe
    from turbodiffusion.training.trainer import Schedule

    recipe = ProbeRecipe(batch=32, first=32, size=32, fresh=0, flip=0, freeze=0, blur=0, noise=0, light=0)
    config = replace(probe_config(small_world), side=32, frames=5, widths=(8, 16, 32, 32, 48))
    run = tmp_path_factory.mktemp("probe")
    schedule = Schedule(lr=1e-2, steps=70, warmup=5, decay=1.0, log_every=40)
    probe = train_probe(small_world, schedule, run, recipe, config=config)
    bank = ProbeBank(small_world, config, recipe, None, recipe.seed)
    bank.advance(0)
    return probe, bank, run
