"""Files that version 0.1 wrote (commit c92b3b5) still open: a video, a model folder's configuration, a training run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from turbodiffusion.checkpoint.folder import read_folder
from turbodiffusion.request import Request

OLD = Path(__file__).parent / "files" / "v0_1"


def test_a_video_tells_its_request():
    pytest.importorskip("av")
    from turbodiffusion.media.metadata import read_metadata

    request = Request.from_json(read_metadata(OLD / "video.mp4")["request"])
    assert (request.prompt, request.seed, request.model) == ("a red fox hops", 7, "./tiny")
    assert (request.num_frames, request.num_steps, request.resolution) == (5, 2, "64x64")
    assert (request.attention_type, request.quant_linear, request.guidance) == ("original", "off", 4.0)


def test_a_model_folder_is_read(tiny_model, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(tiny_model, folder)
    shutil.copy(OLD / "model.json", folder / "model.json")
    assert replace(read_folder(folder), folder=tiny_model) == read_folder(tiny_model)
    assert json.loads((OLD / "model.json").read_text())["version"] == 1


def test_a_training_run_goes_on(tmp_path):
    from turbodiffusion.training.artifacts import read_about, read_weights
    from turbodiffusion.training.trainer import Schedule, Trainer

    run = shutil.copytree(OLD / "run", tmp_path / "run")
    modules = nn.ModuleDict({"student": nn.Linear(3, 2), "fake": nn.Linear(3, 2)})
    schedule = Schedule(lr=0.1, steps=6, warmup=0)
    trainer = Trainer(modules, schedule, run, select_network=lambda step: ("student", "fake")[step % 2])
    assert trainer.resume() and trainer.step == 4
    # The file beside has the student's weights rounded to bfloat16.
    for name, tensor in read_weights(run / "rcm.safetensors").items():
        torch.testing.assert_close(modules["student"].state_dict()[name], tensor, rtol=8e-3, atol=1e-6)
    assert read_about(run / "rcm.safetensors") == {"teacher": "0123456789abcdef", "sigma_max": "80.0"}
    trainer.fit(
        lambda step: {"loss": sum(p.square().sum() for p in modules[("student", "fake")[step % 2]].parameters())}
    )
    assert trainer.step == 6
