"""The recipes on a synthetic world: clips, latent bank, losses, runs on disk, and the folder that pack makes."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

import turbodiffusion as td
from turbodiffusion.checkpoint.places import open_checkpoint
from turbodiffusion.config import VAEConfig
from turbodiffusion.demo.bake import bake_sheet
from turbodiffusion.demo.factors import is_held_out
from turbodiffusion.demo.renderer import World
from turbodiffusion.demo.subjects import BY_NAME
from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.evaluation.metrics import psnr
from turbodiffusion.inference.loaded_model import LoadedModel
from turbodiffusion.models.text import TextEncoder, Tokenizer, train_tokenizer
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import MODELS, ModelPreset
from turbodiffusion.training import artifacts
from turbodiffusion.training.data import ClipBank, LatentBank, caption_sample, clip_factors, of_latent_frames
from turbodiffusion.training.recipes import flow, vae
from turbodiffusion.training.recipes.text import train_text
from turbodiffusion.training.sample_grid import PROMPTS, draw_sample_grid
from turbodiffusion.training.trainer import Schedule, step_generator

# Paints worlds and trains: too long for make test-fast.
pytestmark = pytest.mark.slow

SUBJECTS = ("pig", "fish", "rocket")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects drawn as discs."""
    frame = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(frame).ellipse((8, 8, 56, 56), fill=(255, 60, 160, 255))
    picture = io.BytesIO()
    frame.save(picture, "WEBP", save_all=True, append_images=[frame.rotate(40)], lossless=True)
    sheets = {f"sheet/{n}": np.frombuffer(bake_sheet(BY_NAME[n], picture.getvalue()), np.uint8) for n in SUBJECTS}
    path = tmp_path_factory.mktemp("atlas") / "atlas.npz"
    np.savez(path, recipe=np.array("test"), **sheets)
    return path


@pytest.fixture(scope="module")
def scenes(atlas: Path) -> World:
    return World(atlas, size=(32, 32), frames=5, instances=1)


@pytest.fixture(scope="module")
def small() -> ModelPreset:
    """The demo preset, made small."""
    demo = MODELS["demo"]
    return dataclasses.replace(
        demo,
        transformer=dataclasses.replace(demo.transformer, dim=64, num_heads=1, ffn_dim=64, num_layers=1),
        vae=VAEConfig(dim=4),
        resolution="64x64",
        num_frames=5,
        num_steps=2,
    )


@pytest.fixture(scope="module")
def tokenizer(scenes: World, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    train_tokenizer(caption_sample(scenes.subjects, 2000), path, 2048)
    return Tokenizer(path, MODELS["demo"].text.text_len)


def make_bank(scenes: World, tokenizer: Tokenizer) -> LatentBank:
    torch.manual_seed(3)
    return LatentBank(scenes, WanVAE(VAEConfig(dim=4)), tokenizer, size=6, refresh=2, seed=9, period=2, captions=2)


def test_clips_are_numbered_and_never_held_out(scenes: World) -> None:
    clips = [clip_factors(scenes, 4, clip) for clip in range(40)]
    assert clips[7] == clip_factors(scenes, 4, 7) and clips[7] != clip_factors(scenes, 5, 7)
    assert not any(is_held_out(clip) for clip in clips)


def test_crops_are_cut_from_the_rendered_clips(scenes: World) -> None:
    bank = ClipBank(scenes, size=2, seed=1, chunk=1)
    crop = bank.crops(step_generator(0, 0), 3, 16)
    assert crop.shape == (3, 3, 5, 16, 16)
    whole = scenes.render([clip_factors(scenes, 1, 0), clip_factors(scenes, 1, 1)])
    full = bank.crops(step_generator(0, 0), 8, 32)
    for clip in full:  # a side of the whole picture leaves one place: each crop is one of the clips, to 8 bits
        assert min((clip - one).abs().max() for one in whole) <= 1 / 255 + 1e-6


def test_crops_on_the_subject_have_more_of_it(scenes: World) -> None:
    bank = ClipBank(scenes, size=4, seed=1, chunk=1)
    _, place_BFHW = scenes.render_with_masks([clip_factors(scenes, 1, clip) for clip in range(4)])
    # In place of colours, how much of the subject is at a pixel.
    bank.video_BCFHW = place_BFHW.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, None].mul(255).byte()
    anywhere, there = (bank.crops(step_generator(0, 1), 400, 8, share).mean().item() for share in (0.0, 1.0))
    assert there > anywhere + 0.1


def test_a_bank_that_rolled_is_the_bank_that_was_filled_there(scenes: World, tokenizer: Tokenizer) -> None:
    rolled, fresh = make_bank(scenes, tokenizer), make_bank(scenes, tokenizer)
    for step in range(6):
        rolled.advance(step)
    fresh.advance(5)
    # The clips were encoded in other batches: bf16 latents of float32 sums in another order.
    torch.testing.assert_close(rolled.latents, fresh.latents, rtol=2e-2, atol=2e-2)
    assert torch.equal(rolled.ids, fresh.ids) and rolled.end == fresh.end == 10


def test_batches_carry_their_own_captions_and_drop_some(scenes: World, tokenizer: Tokenizer) -> None:
    bank = make_bank(scenes, tokenizer)
    bank.advance(0)
    batch = bank.batch(step_generator(1, 1), 32, drop=0.0)
    for latent, ids in zip(batch.latent_BCTHW, batch.ids_BS, strict=True):
        (slot,) = [k for k in range(6) if torch.equal(bank.latents[k], latent)]  # type: ignore[index]
        assert any(torch.equal(ids, known.long()) for known in bank.ids[slot])
    dropped = bank.batch(step_generator(1, 1), 32, drop=1.0)
    assert (dropped.ids_BS == tokenizer([""])[0]).all() and (dropped.mask_BS.sum(1) == 1).all()
    some = bank.batch(step_generator(1, 2), 1000, drop=0.1)
    assert 0.05 < (some.mask_BS.sum(1) == 1).float().mean() < 0.15  # 0.1 +- 5 standard errors


def test_vae_learns_and_says_how_well(scenes: World, tmp_path: Path) -> None:
    recipe = vae.VAERecipe(clips=4, batch=2, side=32, compile=False)
    torch.manual_seed(recipe.seed)  # the weights that train_vae begins with
    before = vae.measure(WanVAE(VAEConfig(dim=4)), scenes, clips=8)[0]
    schedule = Schedule(lr=3e-3, steps=30, warmup=3, decay=1.0, log_every=30)
    trainer, model, quality = vae.train_vae(scenes, VAEConfig(dim=4), recipe, schedule, tmp_path)
    assert trainer.step == 30 and quality > before + 0.5
    moments, _ = model.encode_moments(scenes.render(scenes.sample_factors(step_generator(10_000, 0), 8)))
    assert model.config.latents_mean == pytest.approx(moments.mean((0, 2, 3, 4)).tolist(), abs=0.3)


def test_flow_loss_is_the_mean_square_of_the_velocity_error(small, tokenizer: Tokenizer) -> None:  # type: ignore[no-untyped-def]
    """An untrained network says zero, so its loss is that of the target itself; the subject's latents weigh more."""
    network, text = WanTransformer(small.transformer), TextEncoder(small.text)
    x0, noise = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 16, 2, 4, 4)
    ids, mask = tokenizer(["a pink pig walks", ""])
    subject = torch.zeros(2, 2, 4, 4)
    subject[:, :, 1:3, 2] = 1
    times = torch.tensor([0.2, 0.9])
    square = (noise - x0).square()
    plain = flow.flow_loss(network, text, x0, noise, times, ids, mask, torch.ones_like(subject))
    torch.testing.assert_close(plain["loss"], square.mean())
    weighted = flow.flow_loss(network, text, x0, noise, times, ids, mask, 1 + 3 * subject)
    inside = subject[:, None].expand_as(square).bool()
    torch.testing.assert_close(weighted["mse"], square.mean())
    expected = (4 * square[inside].sum() + square[~inside].sum()) / (4 * inside.sum() + (~inside).sum())
    torch.testing.assert_close(weighted["loss"], expected)
    weighted["loss"].backward()
    assert network.head.head.weight.grad is not None and network.head.head.weight.grad.abs().sum() > 0


def test_times_are_shifted_toward_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    for shift in (1.0, 3.0):
        times = flow.draw_times(generator, 100_000, [shift], torch.device("cpu"))
        assert times.min() > 0 and times.max() < 1
        assert times.median().item() == pytest.approx(shift / (1 + shift), abs=0.01)
    mixed = flow.draw_times(generator, 100_000, flow.FlowRecipe().shifts, torch.device("cpu"))
    assert (mixed > 0.97).float().mean().item() == pytest.approx(0.083, abs=0.005)  # as the module's docstring says


def test_latent_frames_know_where_the_subject_was() -> None:
    x = torch.zeros(1, 9, 1, 2)
    x[0, 0, 0, 0], x[0, 4, 0, 1], x[0, 5, 0, 0] = 0.5, 1.0, 0.25
    assert of_latent_frames(x, 4)[0, :, 0].tolist() == [[0.5, 0.0], [0.0, 1.0], [0.25, 0.0]]


def test_the_bank_knows_where_subjects_are(scenes: World, tokenizer: Tokenizer) -> None:
    bank = make_bank(scenes, tokenizer)
    bank.advance(0)
    assert bank.places is not None and bank.places.shape == (6, 2, 4, 4)
    assert (bank.places.flatten(1).amax(1) > 0.9).all() and (bank.places.float().mean() < 0.9)


def test_text_encoder_learns_to_read(tokenizer: Tokenizer, small, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    schedule = Schedule(lr=4e-3, steps=12, warmup=2, log_every=4, muon=True)
    config = dataclasses.replace(small.text, num_layers=1)
    rows, cpu = [BY_NAME[name] for name in SUBJECTS], torch.device("cpu")
    encoder = train_text(rows, tokenizer, config, schedule, tmp_path, cpu, batch=32)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.75 * log[0]["loss"] and log[-1]["right"] > 0.5
    assert encoder(*tokenizer(["a cat"])).shape == (1, tokenizer.text_len, config.d_model)


def test_a_run_becomes_a_model_folder(scenes, atlas, small, tokenizer, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Train a little, write, read back, pack, and generate from the folder as a user does."""
    monkeypatch.setitem(MODELS, "demo", small)
    vae_run, flow_run = tmp_path / "vae", tmp_path / "flow"
    vae_run.mkdir()
    artifacts.write_vae(vae_run, WanVAE(small.vae), 12.5)
    flow_run.mkdir()
    (flow_run / "spiece.model").write_bytes(tokenizer.path.read_bytes())
    bank = LatentBank(
        scenes, artifacts.read_vae(vae_run, torch.device("cpu")), tokenizer, size=4, refresh=2, seed=1, captions=2
    )
    recipe = flow.FlowRecipe(batch=2, compile=False)
    schedule = Schedule(lr=1e-3, steps=2)
    trainer = flow.train_flow(bank, small.transformer, small.text, recipe, schedule, flow_run)
    artifacts.write_weights(flow_run / "flow.safetensors", trainer.ema_state())
    transformer, text = artifacts.read_flow(flow_run, small.transformer, small.text, torch.device("cpu"))
    trained = nn.ModuleDict({"transformer": transformer, "text": text}).state_dict()
    for name, average in trainer.ema_state().items():
        assert torch.equal(trained[name], average.detach().to(torch.bfloat16).float())
    draw_sample_grid(LoadedModel.of_networks(small, transformer, bank.vae, text, tokenizer), tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (8 * 128, 128 * (len(PROMPTS) + 1))

    assert artifacts.pack(vae_run, flow_run, atlas, tmp_path / "exact", store=None) < 8e6
    kept, state = open_checkpoint(tmp_path / "exact", "text"), text.state_dict()
    assert all(torch.equal(kept.read(name).float(), x) for name, x in state.items())
    assert artifacts.pack(vae_run, flow_run, atlas, tmp_path / "model") < 4e6
    assert any(map(open_checkpoint(tmp_path / "model", "text").quantized, state)) and not any(
        map(kept.quantized, state)
    )
    pipe = td.Pipeline.load(str(tmp_path / "model"))
    result = pipe.generate(td.Request(prompt="a green unicorn walks to the left", seed=5))
    assert result.frames.shape == (5, 64, 64, 3)
    assert any("unicorn" in notice for notice in result.notices)  # the notice knows what this model was trained on


def test_missing_and_foreign_runs_are_one_clear_line(small, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match="no trained weights at"):
        artifacts.read_vae(tmp_path, torch.device("cpu"))
    artifacts.write_weights(tmp_path / "flow.safetensors", {"text.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="other sizes"):
        artifacts.read_flow(tmp_path, small.transformer, small.text, torch.device("cpu"))


def test_psnr_of_a_known_error() -> None:
    true = torch.zeros(2, 3, 5, 8, 8)
    made = true + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(made, true), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)


def test_a_missing_atlas_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingFilesError, match="bake it with"):
        artifacts.atlas_subjects(tmp_path / "atlas.npz")
