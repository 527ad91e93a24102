"""Fixtures that tests of several folders share."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

# Triton reads this when it is first imported, which diffusers does; without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["LC_ALL"] = "C.UTF-8"  # messages are compared in English, whatever is spoken here


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder of ours with random weights: 64x64, 5 frames, 2 steps of the flow sampler, in a second or so."""
    from turbodiffusion.checkpoint.folder import save_folder
    from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
    from turbodiffusion.models.text import TextEncoder, train_tokenizer
    from turbodiffusion.models.vae.model import WanVAE
    from turbodiffusion.models.wan import WanTransformer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    spiece = folder.with_suffix(".model")
    words = [
        f"a {color} {thing} {does}"
        for color in ("red", "blue")
        for thing in ("fox", "ball")
        for does in ("hops", "rolls")
    ]
    train_tokenizer([*words, "一只红色的狐狸在草地上奔跑"], spiece, vocab_size=330)
    torch.manual_seed(0)
    transformer = WanTransformer(WanConfig(dim=32, ffn_dim=64, num_heads=1, num_layers=1, text_dim=32, text_len=16))
    for name, p in transformer.named_parameters():  # a new head is zero, and says nothing of text, time or guidance
        if name.startswith("head.head") or ".cross_attn." in name:
            torch.nn.init.normal_(p, std=0.3)
    save_folder(
        folder,
        config={
            "sampling": {
                "sampler": "flow",
                "num_steps": 2,
                "resolution": "64x64",
                "num_frames": 5,
                "shift": 3.0,
                "guidance": 4.0,
            },
            "about": {"file_name": "Tiny"},
        },
        transformer=transformer,
        vae=WanVAE(VAEConfig(dim=8)),
        text=TextEncoder(
            TextConfig(d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=32, vocab_size=512, text_len=16)
        ),
        tokenizer=spiece,
    )
    return folder


@pytest.fixture
def graphs_by_hand(monkeypatch) -> list[int]:
    """CUDA graphs on any device: a replay runs the function on the inputs that were held, into the outputs that were
    made. Returns a list with an entry for each capture, the number of its inputs."""
    from types import SimpleNamespace

    from turbodiffusion.models import cuda_graphs

    captures: list[int] = []

    def capture(self, function, inputs):
        held = [x.clone() for x in cuda_graphs._flat(inputs)]
        mine = cuda_graphs._built(inputs, iter(held))
        outputs = function(*mine)

        def replay():
            for old, new in zip(cuda_graphs._flat(outputs), cuda_graphs._flat(function(*mine)), strict=True):
                old.copy_(new)

        captures.append(len(held))
        return cuda_graphs._Captured(SimpleNamespace(replay=replay), held, outputs)

    monkeypatch.setattr(cuda_graphs.CudaGraphCache, "_capture", capture)
    return captures


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

    from turbodiffusion.evaluation.judge import ProbeBank, ProbeRecipe, probe_config, train_probe
    from turbodiffusion.training.trainer import Schedule

    recipe = ProbeRecipe(batch=32, first=32, size=32, refresh=0, flip=0, freeze=0, blur=0, noise=0, light=0)
    config = replace(probe_config(small_world), side=32, frames=5, widths=(8, 16, 32, 32, 48))
    run = tmp_path_factory.mktemp("probe")
    schedule = Schedule(lr=1e-2, steps=140, warmup=5, decay=1.0, log_every=40)
    probe = train_probe(small_world, schedule, run, recipe, config=config)
    bank = ProbeBank(small_world, config, recipe, None, recipe.seed)
    bank.advance(0)
    return probe, bank, run
