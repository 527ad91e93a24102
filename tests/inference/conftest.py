"""Small random models of every form, as folders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from turbodiffusion.checkpoint.folder import save_folder
from turbodiffusion.config import TextConfig, VAEConfig, WanConfig
from turbodiffusion.models.text import TextEncoder, train_tokenizer
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer

# 9 frames of 64x64 are 3 x 4 x 4 tokens: three blocks of 16, of which SLA keeps one
CONFIG = WanConfig(
    dim=128,
    ffn_dim=256,
    num_heads=2,
    num_layers=2,
    text_dim=32,
    text_len=16,
    freq_dim=32,
    sla_topk=0.34,
    sla_block_q=16,
    sla_block_k=16,
)


FLOW = {"sampler": "flow", "num_steps": 3, "shift": 3.0, "guidance": 4.0, "resolution": "64x64", "num_frames": 9}


RCM = {"sampler": "rcm", "num_steps": 4, "sigma_max": 80.0, "resolution": "64x64", "num_frames": 9}


@pytest.fixture(scope="session")
def small_config() -> WanConfig:
    return CONFIG


def random_transformer(config: WanConfig, seed: int) -> WanTransformer:
    torch.manual_seed(seed)
    model = WanTransformer(config)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)  # zero at the start of training
    for name, parameter in model.named_parameters():
        if "proj_l" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("words") / "spiece.model"
    train_tokenizer(
        [f"a {c} {s} {v}" for c in ("red", "blue") for s in ("fox", "cat") for v in ("runs", "flies")], path, 300
    )
    return path


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory, spiece):
    """Write a model folder; options: i2v, experts, sampling, and `damage(parts)` to break weights before saving."""

    def make(name="tiny", *, i2v=False, experts=None, sampling=None, config=CONFIG, damage=None) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        config = replace(config, in_dim=36) if i2v else config
        torch.manual_seed(1)
        text = TextConfig(d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=64, vocab_size=300, text_len=16)
        parts = {
            "transformer": random_transformer(config, 2),
            "vae": WanVAE(VAEConfig(dim=8)),
            "text": TextEncoder(text),
        }
        if (experts or 1 + i2v) == 2:
            parts["transformer_low"] = random_transformer(config, 3)
        if damage:
            with torch.no_grad():
                damage(parts)
        defaults = sampling or ({**RCM, "boundary": 0.9, "sigma_max": 200.0} if i2v else FLOW)
        save_folder(folder, config={"sampling": defaults, "about": {}}, tokenizer=spiece, **parts)
        return folder

    return make


@pytest.fixture(scope="module")
def flow_folder(make_folder):
    return make_folder("flow")


@pytest.fixture(scope="module")
def rcm_folder(make_folder):
    return make_folder("rcm", sampling=RCM)


@pytest.fixture(scope="module")
def i2v_folder(make_folder):
    return make_folder("i2v", i2v=True)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    x, y = np.meshgrid(np.linspace(0, 255, 160), np.linspace(0, 255, 96))
    Image.fromarray(np.stack((x, y, 255 - x), axis=-1).astype(np.uint8)).save(path)
    return path
