"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

import pytest
import torch

# Triton reads this when it is first imported, which diffusers does; without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder of ours with random weights: 64x64, 5 frames, 2 steps of the flow sampler, in a second or so."""
    from turbodiffusion.checkpoint.folder import save_folder
    from turbodiffusion.models.text import TextConfig, TextEncoder, train_tokenizer
    from turbodiffusion.models.vae import VAEConfig, WanVAE
    from turbodiffusion.models.wan import WanConfig, WanTransformer

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
        transformer=WanTransformer(WanConfig(dim=32, ffn_dim=64, num_heads=1, num_layers=1, text_dim=32, text_len=16)),
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

    from turbodiffusion.models import graphs as room

    captures: list[int] = []

    def capture(self, function, inputs):
        held = [x.clone() for x in room._flat(inputs)]
        mine = room._built(inputs, iter(held))
        outputs = function(*mine)

        def replay():
            for old, new in zip(room._flat(outputs), room._flat(function(*mine)), strict=True):
                old.copy_(new)

        captures.append(len(held))
        return room._Captured(SimpleNamespace(replay=replay), held, outputs)

    monkeypatch.setattr(room.Graphs, "_capture", capture)
    return captures
