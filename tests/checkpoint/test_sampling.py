"""How a checkpoint is sampled: what its files say, what is guessed, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from turbodiffusion.checkpoint.sampling import check_about, check_sampling, file_name, infer_sampling, says_two_experts
from turbodiffusion.config import WanConfig
from turbodiffusion.errors import CheckpointError

DENSE = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
AT = Path("model.json")


def diffusers(folder, index=None, scheduler=None):
    (folder / "scheduler").mkdir(parents=True)
    (folder / "transformer").mkdir()
    (folder / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index or {}))
    scheduler = scheduler if isinstance(scheduler, str) else json.dumps(scheduler or {})
    (folder / "scheduler" / "scheduler_config.json").write_text(scheduler)
    return folder


def test_two_experts_have_the_numbers_of_their_task():
    t2v = infer_sampling(Path("wan"), DENSE, "t2v", 2).values
    assert t2v == {
        "sampler": "flow", "num_steps": 40, "shift": 12.0, "guidance": 4.0, "guidance_low": 3.0, "boundary": 0.875
    }  # fmt: skip
    i2v = infer_sampling(Path("wan"), DENSE, "i2v", 2).values
    assert i2v == {"sampler": "flow", "num_steps": 40, "shift": 5.0, "guidance": 3.5, "boundary": 0.9}


def test_diffusers_own_numbers_win(tmp_path):
    folder = diffusers(tmp_path / "a", {"boundary_ratio": 0.8}, {"flow_shift": 7})
    for path in (folder, folder / "transformer" / "x.safetensors"):
        path.parent.mkdir(exist_ok=True)
        if path != folder:
            path.write_bytes(b"")
        values = infer_sampling(path, DENSE, "t2v", 2).values
        assert (values["boundary"], values["shift"], values["guidance"]) == (0.8, 7.0, 4.0)
    assert says_two_experts(folder)
    single = diffusers(tmp_path / "b", {"boundary_ratio": None, "transformer_2": [None, None]}, {"flow_shift": None})
    assert infer_sampling(single, DENSE, "t2v", 1).values["shift"] == 5.0
    assert not says_two_experts(single)
    assert says_two_experts(diffusers(tmp_path / "c", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}))


@pytest.mark.parametrize(
    ("index", "scheduler", "message"),
    [
        ({"boundary_ratio": 875}, {}, "boundary_ratio must be from 0.5 to 1, got 875"),
        ({"boundary_ratio": "0.9"}, {}, "boundary_ratio must be"),
        ({}, {"flow_shift": []}, r"flow_shift must be from 0.1 to 100, got \[\]"),
        ({}, '{"flow_shift": NaN}', "scheduler_config.json is damaged"),
        ("[" * 60_000, {}, "model_index.json is damaged"),
        ([], {}, "model_index.json is damaged: an object is needed"),
    ],
)
def test_diffusers_broken_numbers_are_told(index, scheduler, message, tmp_path):
    folder = tmp_path / "a"
    diffusers(folder, index, scheduler)
    if index == []:
        (folder / "model_index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=message):
        infer_sampling(folder, DENSE, "t2v", 2)


@pytest.mark.parametrize(
    ("name", "config", "sampler", "because"),
    [
        ("wan.pth", DENSE, "flow", "nothing says otherwise; --sampler rcm"),
        ("wan.pth", replace(DENSE, round_time_to_bf16=True), "rcm", "tensors are TurboDiffusion's; --sampler flow"),
        ("rCM_Wan2.1_14B.pth", DENSE, "rcm", "because its name has rCM"),
        ("wan-14b-4steps.pth", DENSE, "rcm", "because its name has 4steps"),
        ("wan_lightx2v_distill.pth", DENSE, "rcm", "because its name has lightx2v"),
        ("undistilled-wan.pth", DENSE, "flow", "undistilled"),
        ("rCM-14b/transformer/diffusion_pytorch_model.safetensors", DENSE, "rcm", "because its name has rCM"),
        ("turbodiffusion/wan.pth", DENSE, "flow", "nothing says otherwise"),
    ],
)
def test_a_guess_is_told_and_can_be_overruled(name, config, sampler, because):
    guessed = infer_sampling(Path("models") / name, config, "t2v", 1)
    assert guessed.values["sampler"] == sampler
    ((field, told),) = guessed.assumed
    assert field == "sampler" and because in str(told)
    other = {"rcm": "flow", "flow": "rcm"}[sampler]
    said = infer_sampling(Path("models") / name, config, "t2v", 1, sampler=other)
    assert said.values["sampler"] == other and said.assumed == ()
    with pytest.raises(CheckpointError, match="there are rcm"):
        infer_sampling(Path(name), config, "t2v", 1, sampler="ddim")


def test_fast_wan_is_told_that_its_times_are_others():
    told = infer_sampling(Path("FastWan2.1-T2V-1.3B.safetensors"), DENSE, "t2v", 1).assumed
    assert "1000, 757 and 522" in str(told[-1][1])


FLOW = {"sampler": "flow", "num_steps": 2, "shift": 3.0, "guidance": 4.0}


@pytest.mark.parametrize(
    "values",
    [
        *([], None, "flow", 5),
        *({"sampler": value} for value in ("ddim", [], None, 1, {})),
        *({**FLOW, "num_steps": value} for value in (0, 10**9, 2.5, True, "4", None, [])),
        *({**FLOW, "resolution": value} for value in (5, "", "x", "480", None, [], "9" * 4000 + "x64")),
        *({**FLOW, "fps": value} for value in (-3, 0, 10**12, 16.5, "16", None, True)),
        *({**FLOW, "num_frames": value} for value in (0, 10**6, "81")),
        *({**FLOW, "shift": value} for value in (0, -1, float("inf"), float("nan"), "3", True)),
        *({**FLOW, "guidance_low": value} for value in (-1, 101, [])),
        *({**FLOW, "boundary": value} for value in (0.1, 2)),
        *({**FLOW, "aspect_ratio": value} for value in ("16x9", 16)),
        {"sampler": "rcm", "num_steps": 4},
        {**FLOW, "steps": 4},
    ],
)
def test_broken_sampling_is_refused(values):
    with pytest.raises(CheckpointError, match=r"model\.json") as caught:
        check_sampling(values, AT)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_good_sampling_stays_as_it_is():
    for values in ({}, FLOW, {**FLOW, "resolution": "64x64", "fps": 24, "aspect_ratio": "9:16", "num_frames": 9}):
        assert check_sampling(values, AT) is values


@pytest.mark.parametrize(
    "about",
    [
        *([], None, "x", 3),
        *({"title": value} for value in (3, "", [], "a\nb", "x" * 1000)),
        *({"file_name": value} for value in ("", "../x", "a/b", "a\0b", "x" * 300, 7, ".hidden")),
        *({"subjects": value} for value in ("cat", [3], {}, 5)),
    ],
)
def test_broken_about_is_refused(about):
    with pytest.raises(CheckpointError, match=r"model\.json"):
        check_about(about, AT)


def test_a_model_is_called_by_its_file_in_the_names_of_videos(tmp_path):
    path = tmp_path / ("x" * 200 + ".pth")
    path.write_bytes(b"")
    assert file_name(path) == "x" * 80
    (tmp_path / "a\nb.pth").write_bytes(b"")
    assert file_name(tmp_path / "a\nb.pth") == "a_b"
    assert file_name(tmp_path) == tmp_path.name
