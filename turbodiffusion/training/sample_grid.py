"""Sample grids: what the model draws for eight fixed prompts, so that a person can see a run learn."""

from pathlib import Path

import torch
from PIL import Image

from turbodiffusion.files import write_file
from turbodiffusion.inference.batch import make_clips
from turbodiffusion.inference.loaded_model import LoadedModel

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
VARIED = "a red car in the city"  # with eight seeds: weather, light and place are left open
SHOWN, SIDE = 8, 128  # frames of a clip, pixels


def draw_sample_grid(model: LoadedModel, path: Path) -> None:
    """Write a PNG with a row of frames for each of PROMPTS, in order, seeds 1, 2, ..., and a last one for VARIED.

    The last row has the middle frames of seeds 1 to 8: whether a model still knows more than one video for a prompt.
    """
    videos = make_clips(model, PROMPTS, range(1, len(PROMPTS) + 1))
    picks = torch.linspace(0, videos.shape[2] - 1, SHOWN).round().long().to(videos.device)
    varied = make_clips(model, [VARIED] * SHOWN, range(1, SHOWN + 1))[:, :, videos.shape[2] // 2]
    shown = torch.cat((videos[:, :, picks].transpose(1, 2), varied[None]))  # [rows, SHOWN, 3, H, W]
    pixels = ((shown + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    grid = Image.new("RGB", (SHOWN * SIDE, len(pixels) * SIDE))
    for row, clip in enumerate(pixels):
        for column, frame in enumerate(clip):
            grid.paste(Image.fromarray(frame).resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
    write_file(path, lambda beside: grid.save(beside, format="PNG"))
