"""The README's pictures: eight fixed prompts, seeds 1 to 8, uncurated, as an animation and as a still sheet.

python benchmarks/gallery.py --out docs/images        (about ten minutes on two CPU cores)
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import turbodiffusion as td
from turbodiffusion.training.sample_grid import PROMPTS

COLUMNS, SIDE, SHOWN = 4, 160, 7  # of the animation; pixels of a picture; frames of a row of the sheet
FRAME_MS = 125  # every second frame of 16 a second


def draw(model: str) -> list[np.ndarray]:
    """Frames uint8 [F, H, W, 3] of each prompt, as a user gets them."""
    pipe = td.Pipeline.load(model)
    videos = []
    for seed, prompt in enumerate(PROMPTS, start=1):
        result = pipe.generate(td.Request(prompt=prompt, seed=seed))
        print(f"{sum(result.seconds.values()):.0f} s  seed {seed}  {prompt}", flush=True)
        videos.append(result.frames)
    return videos


def tile(frames: list[np.ndarray], columns: int) -> Image.Image:
    """Pictures in rows of `columns`, SIDE pixels each."""
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for place, frame in enumerate(frames):
        small = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (place % columns * SIDE, place // columns * SIDE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="draw the README's pictures")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    videos = draw(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    moments = [tile([video[k] for video in videos], COLUMNS) for k in range(0, len(videos[0]), 2)]
    moments[0].save(
        options.out / "demo.webp", save_all=True, append_images=moments[1:], duration=FRAME_MS, loop=0, quality=70
    )
    picks = np.linspace(0, len(videos[0]) - 1, SHOWN).round().astype(int)
    tile([video[k] for video in videos for k in picks], SHOWN).save(options.out / "demo-sheet.webp", quality=85)


if __name__ == "__main__":
    main()
