"""Sample sheets: what the model draws for eight fixed prompts, so that a person can see a run learn."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from turbodiffusion.models.text import TextEncoder, Tokenizer
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import ModelPreset
from turbodiffusion.sampling import State, flow_times, noise, sample_flow

PROMPTS = (
    "an orange cat runs to the right through a sunny garden",
    "一只企鹅在雪地里向左走",
    "a red rocket flies up into the night sky",
    "一条蓝色的鱼在水下向右游",
    "a brown horse gallops to the left in a forest",
    "一架飞机在天空中向右飞",
    "a sailboat drifts to the left on the sea at sunset",
    "一辆红色的汽车在城市里向右行驶",
)
SHOWN, SIDE = 7, 128  # frames of a clip, pixels


@torch.no_grad()
def sample(
    transformer: WanTransformer,
    text: TextEncoder,
    vae: WanVAE,
    tokenizer: Tokenizer,
    preset: ModelPreset,
    prompts: tuple[str, ...],
) -> Tensor:
    """Videos [B, 3, F, H, W] in [-1, 1] of the prompts, seeds 1, 2, ..., by the preset's guided sampler."""
    device = next(transformer.parameters()).device
    ids_BS, mask_BS = (x.to(device) for x in tokenizer([*prompts, *[""] * len(prompts)], clean=False))
    context = transformer.encode_context(text(ids_BS, mask_BS))
    shape = (16, (preset.num_frames - 1) // 4 + 1, preset.height // 8, preset.width // 8)
    guidance = preset.guidance or 1.0

    def denoise(x: Tensor, t: float) -> Tensor:
        both = torch.cat([x, x]).float()
        given, free = transformer(both, torch.full((len(both),), 1000 * t, device=device), context).chunk(2)
        return free + guidance * (given - free)

    start = torch.stack([noise(shape, seed, 0, device) for seed in range(1, len(prompts) + 1)])
    times = flow_times(preset.num_steps, preset.shift or 1.0)
    latent = sample_flow(denoise, start.shape, times, 0, device=device, start=State(0, start.double()))
    return vae.decode(latent.float()).clamp(-1, 1)


def draw_sheet(
    transformer: WanTransformer,
    text: TextEncoder,
    vae: WanVAE,
    tokenizer: Tokenizer,
    preset: ModelPreset,
    path: Path,
) -> None:
    """Write a PNG with a row of frames for each of PROMPTS, in their order."""
    videos = sample(transformer, text, vae, tokenizer, preset, PROMPTS)
    picks = torch.linspace(0, videos.shape[2] - 1, SHOWN).round().long().to(videos.device)
    pixels = ((videos[:, :, picks] + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()
    sheet = Image.new("RGB", (SHOWN * SIDE, len(PROMPTS) * SIDE))
    for row, clip in enumerate(pixels):
        for column, frame in enumerate(clip):
            sheet.paste(Image.fromarray(frame).resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
    sheet.save(path)
