"""Demo models and their variants, and clips from them in batches, straight with the transformer.

A pipeline makes one video at a time; thousands of small ones want a batch a step. The samplers and the networks are the
pipeline's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.checkpoint.load import load_text, load_transformer, load_vae
from turbodiffusion.config import REFERENCE, WanConfig
from turbodiffusion.errors import RequestError
from turbodiffusion.inference import model_source as source
from turbodiffusion.inference.auto import DTYPES, choose_dtype, choose_kernels, supported_kernels
from turbodiffusion.inference.sampling import State, noise, sample_flow, sample_rcm
from turbodiffusion.models.text import TextEncoder, Tokenizer
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import ModelPreset
from turbodiffusion.schedules import flow_times, rcm_times


@dataclass(frozen=True)
class Variant:
    """A way to make videos: a model's name or folder, and what differs from its own defaults (None: nothing).

    The fields are those of a Request, by the same words, and `kernels` that of `Pipeline.load`.
    """

    name: str
    model: str
    num_steps: int | None = None
    guidance: float | None = None
    attention_type: str | None = None
    sla_topk: float | None = None
    quant_linear: str | None = None
    kernels: str | None = None


def parse_variant(text: str) -> Variant:
    """A variant from NAME=MODEL[,FIELD=VALUE...], as in "rcm4_sla015=models/rcm,num_steps=4,sla_topk=0.15".

    Raises RequestError naming what may be set.
    """
    head, *settings = text.split(",")
    name, equals, model = head.partition("=")
    kinds: dict[str, Callable[[str], Any]] = {
        "num_steps": int,
        "guidance": float,
        "attention_type": str,
        "sla_topk": float,
        "quant_linear": str,
        "kernels": str,
    }
    assert set(kinds) == {field.name for field in fields(Variant)} - {"name", "model"}
    values = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            values[key] = kinds[key](value)
        except (KeyError, ValueError):
            raise RequestError(f"variant {name!r}: {setting!r} is none of {', '.join(kinds)} = value") from None
    if not (name and equals and model):
        raise RequestError(f"variant {text!r}: write NAME=MODEL, as in teacher=demo,num_steps=50")
    return Variant(name, model, **values)


@dataclass(frozen=True)
class DemoModel:
    """A loaded model on its device, with its defaults as a variant changes them."""

    preset: ModelPreset
    transformer: WanTransformer
    text: TextEncoder
    vae: WanVAE
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        return self.transformer.head.head.weight.device


def load_variant(variant: Variant, device: torch.device, *, compile: bool = False) -> DemoModel:
    """The variant's model, bfloat16 on a GPU, float32 on a CPU, with the kernels that run there.

    compile: torch.compile the transformer, of the references then. Raises a UserError when it cannot be as asked.
    """
    origin = source.resolve_model(variant.model)
    changed = {k: getattr(variant, k) for k in ("num_steps", "guidance") if getattr(variant, k) is not None}
    kinds = {
        k: getattr(variant, k)
        for k in ("attention_type", "sla_topk", "quant_linear")
        if getattr(variant, k) is not None
    }
    try:
        preset = replace(origin.preset, **changed)
        config = replace(origin.preset.transformer, **kinds)
    except ValueError as error:
        raise RequestError(f"variant {variant.name!r}: {error}") from None
    if preset.experts != 1 or preset.task != "t2v":
        raise RequestError(f"variant {variant.name!r}: {variant.model} is not a demo model")
    if compile and variant.kernels not in (None, "reference"):
        raise RequestError(f"variant {variant.name!r}: kernels={variant.kernels} and --compile exclude each other")
    dtype = choose_dtype("auto", device)
    kernels = choose_kernels("reference" if compile else variant.kernels or "auto", device, dtype)
    trained_sparse = origin.preset.transformer.attention_type in ("sla", "sagesla")
    model = read_model(
        preset,
        replace(config, kernels=supported_kernels(kernels, config, device)),
        source.fetch_files(origin),
        device,
        DTYPES[dtype],
        vae_impl=kernels.vae,
        allow_missing=() if trained_sparse else ("proj_l",),
    )
    if kernels != REFERENCE:
        model.transformer.prepare()
    if compile:
        model.transformer.forward = torch.compile(model.transformer.forward)  # type: ignore[method-assign]
    return model


def read_model(
    preset: ModelPreset,
    config: WanConfig,
    paths: Mapping[str, Path],
    device: torch.device,
    dtype: torch.dtype,
    *,
    vae_impl: str = "reference",
    allow_missing: Sequence[str] = (),
) -> DemoModel:
    """The files at `paths` in networks of these kinds, frozen. allow_missing: as `load_transformer`."""
    transformer = WanTransformer(config, device="meta", dtype=dtype)
    load_transformer(transformer, paths["transformer"], device=device, allow_missing=allow_missing)
    text = TextEncoder(preset.text, device="meta", dtype=dtype)
    load_text(text, paths["text"], device=device)
    vae = WanVAE(preset.vae, device="meta", dtype=dtype, impl=vae_impl)
    load_vae(vae, paths["vae"], device=device)
    for module in (transformer, text, vae):
        module.eval().requires_grad_(False)
    return DemoModel(preset, transformer, text, vae, Tokenizer(paths["tokenizer"], preset.text.text_len))


@torch.no_grad()
def make_clips(model: DemoModel, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Videos [B, 3, F, H, W] in [-1, 1] by the model's own sampler, a seed each.

    A clip depends on its prompt and seed alone where the sampler draws noise once ("flow"); the later noise of "rcm" is
    drawn for the batch, from its first seed.
    """
    preset, device = model.preset, model.device
    guidance = preset.guidance if preset.sampler == "flow" and preset.guidance is not None else 1.0
    guided = guidance != 1
    texts = [*prompts, *([""] * len(prompts) if guided else [])]
    ids_BS, mask_BS = (x.to(device) for x in model.tokenizer(texts, clean=False))
    context = model.transformer.encode_context(model.text(ids_BS, mask_BS))
    length = (preset.num_frames - 1) // preset.vae.time_factor + 1
    shape = (
        preset.vae.z_dim,
        length,
        preset.height // preset.vae.space_factor,
        preset.width // preset.vae.space_factor,
    )

    def denoise(x: Tensor, t: float) -> Tensor:
        both = (torch.cat([x, x]) if guided else x).float()
        velocity = model.transformer(both, torch.full((len(both),), 1000 * t, device=device), context)
        if not guided:
            return velocity
        given, free = velocity.chunk(2)
        return free + guidance * (given - free)

    start = torch.stack([noise(shape, seed, 0, device) for seed in seeds]).double()
    if preset.sampler == "rcm":
        assert preset.sigma_max is not None
        times = rcm_times(preset.num_steps, preset.sigma_max)
        latent = sample_rcm(denoise, start.shape, times, seeds[0], device=device, start=State(0, start * times[0]))
    else:
        times = flow_times(preset.num_steps, preset.shift or 1.0)
        latent = sample_flow(denoise, start.shape, times, seeds[0], device=device, start=State(0, start))
    return model.vae.decode(latent.float()).float().clamp(-1, 1)
