"""Variants of demo models, and clips from them in batches.

A pipeline makes one video at a time; thousands of small ones want a batch a step. Model, guided velocity and samplers
are the pipeline's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import MachineError, RequestError
from turbodiffusion.inference.load_options import LoadOptions
from turbodiffusion.inference.loaded_model import LoadedModel
from turbodiffusion.inference.model_source import resolve_model
from turbodiffusion.inference.sampling import State, noise, sample_flow, sample_rcm
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


def load_variant(variant: Variant, device: torch.device, *, compile: bool = False) -> LoadedModel:
    """Load a variant's model, bfloat16 on a GPU, float32 on a CPU, with the kernels that run there.

    compile: torch.compile the transformer, of the references then. Raises a UserError when it cannot be as asked.
    """
    if compile and variant.kernels not in (None, "reference"):
        raise RequestError(f"variant {variant.name!r}: kernels={variant.kernels} and --compile exclude each other")
    preset = resolve_model(variant.model).preset
    if preset.experts != 1 or preset.task != "t2v":
        raise RequestError(f"variant {variant.name!r}: {variant.model} is not a demo model")
    options = LoadOptions(
        variant.model,
        device=str(device),
        attention_type=variant.attention_type or "auto",
        sla_topk=variant.sla_topk,
        quant_linear=variant.quant_linear or "auto",
        kernels="reference" if compile else variant.kernels or "auto",
    )
    try:
        model = LoadedModel.load(options)
        changed = {k: getattr(variant, k) for k in ("num_steps", "guidance") if getattr(variant, k) is not None}
        model.preset = replace(model.preset, **changed)
    except MachineError:
        raise
    except (RequestError, ValueError) as error:
        raise RequestError(f"variant {variant.name!r}: {error}") from None
    if compile:
        model.transformer.forward = torch.compile(model.transformer.forward)  # type: ignore[method-assign]
    return model


@torch.no_grad()
def make_clips(model: LoadedModel, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Return videos [B, 3, F, H, W] in [-1, 1] by the model's own sampler, a seed each.

    A clip depends on its prompt and seed alone where the sampler draws noise once ("flow"); the later noise of "rcm" is
    drawn for the batch, from its first seed.
    """
    preset, device = model.preset, model.device
    guidance = preset.guidance if preset.sampler == "flow" and preset.guidance is not None else 1.0
    texts = [prompts] if guidance == 1 else [prompts, [""] * len(prompts)]
    prompt_embeds = [model.prompt_encoder.encode_batch(each, clean=False) for each in texts]
    predict_velocity = model.predict_velocity(prompt_embeds, guidance=guidance)
    length = (preset.num_frames - 1) // preset.vae.time_factor + 1
    shape = (
        preset.vae.z_dim,
        length,
        preset.height // preset.vae.space_factor,
        preset.width // preset.vae.space_factor,
    )
    start = torch.stack([noise(shape, seed, 0, device) for seed in seeds]).double()
    if preset.sampler == "rcm":
        assert preset.sigma_max is not None
        times = rcm_times(preset.num_steps, preset.sigma_max)
        first = State(0, start * times[0])
        latent = sample_rcm(predict_velocity, start.shape, times, seeds[0], device=device, start=first)
    else:
        times = flow_times(preset.num_steps, preset.shift or 1.0)
        latent = sample_flow(predict_velocity, start.shape, times, seeds[0], device=device, start=State(0, start))
    return model.vae.decode(latent.float()).float().clamp(-1, 1)
