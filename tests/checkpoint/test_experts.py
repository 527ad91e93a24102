"""Which of two experts a file is, by whole words in any case, and the other one beside it."""

from pathlib import Path

import pytest

from turbodiffusion.checkpoint.experts import find_partner, half_pair, may_be_pair, noise_level, says_pair
from turbodiffusion.config import WanConfig

SMALL = WanConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=1)
LARGE = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
IMAGE = WanConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=1, in_dim=36)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("TurboWan2.2-I2V-A14B-high-720P-quant.pth", "high"),
        ("wan2.2_t2v_low_noise_14B_fp16.safetensors", "low"),
        ("Wan2_2-T2V-A14B_HIGH_fp8.safetensors", "high"),
        ("wan22-LowNoise-v2.safetensors", "low"),
        ("high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors", "high"),
        ("low_noise_model/diffusion_pytorch_model.safetensors.index.json", "low"),
        ("transformer_2/diffusion_pytorch_model.safetensors", "low"),
        ("transformer/diffusion_pytorch_model.safetensors", None),  # no transformer_2 beside it
        ("wan-flow-highway-slow-1.3b.safetensors", None),
        ("yellow.pth", None),
        ("high/wan.pth", None),  # a folder of high quality is no expert
    ],
)
def test_the_noise_level_is_a_whole_word(name, level, tmp_path):
    assert noise_level(tmp_path / name) == level


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("wan2.2_t2v_high_noise_14B.safetensors", "wan2.2_t2v_low_noise_14B.safetensors"),
        ("Wan2_2-T2V-A14B_HIGH.safetensors", "Wan2_2-T2V-A14B-LOW.safetensors".replace("-LOW", "_LOW")),
        ("highway-High.pth", "highway-Low.pth"),
        ("slow_high_noise.pth", "slow_LOW_noise.pth"),
        ("high_noise_model/model.safetensors", "low_noise_model/model.safetensors"),
        ("transformer/model.safetensors", "transformer_2/model.safetensors"),
    ],
)
def test_the_partner_has_the_same_name_with_the_other_word(high, low, tmp_path):
    for name in (high, low):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "another-low.pth").write_bytes(b"")
    assert find_partner(tmp_path / high) == tmp_path / low
    assert find_partner(tmp_path / low) == tmp_path / high
    (tmp_path / low).unlink()
    assert find_partner(tmp_path / high) is None


@pytest.mark.parametrize(
    ("name", "config", "pair"),
    [
        ("wan_high_noise.pth", SMALL, True),
        ("wan-high.pth", SMALL, False),  # of high quality, say
        ("wan-high.pth", LARGE, True),
        ("Wan2.2-high.pth", SMALL, True),
        ("Wan2.2-T2V-A14B.pth", LARGE, True),
        ("wan.pth", IMAGE, True),
        ("wan2.2-all-in-one.pth", LARGE, False),
        ("Wan2.1-T2V-14B.pth", LARGE, False),
        ("low_noise_model/model.safetensors", LARGE, True),
    ],
)
def test_what_tells_one_of_a_pair(name, config, pair):
    assert says_pair(Path("models") / name, config) == pair


def test_wan_2_2_in_a_name():
    for name in ("wan2.2-rapid.pth", "Wan_2_2-x.pth", "wan22_x.pth"):
        assert may_be_pair(Path("models") / name), name
    for name in ("wan2.1.pth", "v12.21.pth", "wan221.pth"):
        assert not may_be_pair(Path("models") / name), name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Wan-High-noise.pth", "no Wan-Low-noise.pth beside it"),
        ("WAN_LOW.pth", "no WAN_HIGH.pth beside it"),
        ("high_noise_model/x.safetensors", "no low_noise_model/x.safetensors beside it"),
        ("transformer_2/x.safetensors", "no transformer/x.safetensors beside it"),
        ("wan.pth", "with high and low in their names"),
    ],
)
def test_half_a_pair_is_told_what_is_missing(name, wanted):
    assert wanted in str(half_pair(Path("models") / name))
