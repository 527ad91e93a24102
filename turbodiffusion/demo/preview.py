"""Contact sheets of the demo world: `python -m turbodiffusion.demo.preview --out sheet.png`: captions and seven
frames of random clips."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from turbodiffusion.demo.captions import caption
from turbodiffusion.demo.factors import Factors, is_wished
from turbodiffusion.demo.renderer import World
from turbodiffusion.errors import UserError
from turbodiffusion.files import write_file

SHOWN = 7  # frames of a clip on the sheet


def contact_sheet(world: World, clips: Sequence[Factors], captions: Sequence[str], width: int = 128) -> Image.Image:
    """One row a clip: its caption above SHOWN frames, each `width` pixels wide."""
    height = round(width / world.aspect)
    sheet = Image.new("RGB", (SHOWN * (width + 2), len(clips) * (height + 15)), "white")
    pen = ImageDraw.Draw(sheet)
    picks = torch.linspace(0, world.frames - 1, SHOWN).round().long()
    for row, (clip, words) in enumerate(zip(clips, captions, strict=True)):
        pen.text((2, row * (height + 15) + 1), words.encode("latin-1", "replace").decode("latin-1"), fill="black")
        frames = (
            world.render([clip])[0, :, picks.to(world.device)]
            .permute(1, 2, 3, 0)
            .add(1)
            .mul(127.5)
            .round()
            .byte()
            .cpu()
            .numpy()
        )
        for k, frame in enumerate(frames):
            small = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (k * (width + 2), row * (height + 15) + 13))
    return sheet


def _size(words: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d{2,4}x\d{2,4}", words):
        raise UserError("demo.sheet_size", value=words)
    width, _, height = words.partition("x")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description="draw a contact sheet of random clips of the demo world")
    parser.add_argument("--atlas", type=Path, default=Path(".cache/demo-world/atlas.npz"))
    parser.add_argument("--out", type=Path, default=Path("outputs/demo-world.png"))
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="256x256", help="WIDTHxHEIGHT")
    parser.add_argument("--wishes", action="store_true", help="only clips of what people ask for first")
    options = parser.parse_args()
    try:
        width, height = _size(options.size)
        world = World(options.atlas, size=(height, width), instances=2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    rng = np.random.default_rng(options.seed)
    clips: list[Factors] = []
    while len(clips) < options.clips:
        drawn = world.sample_factors(rng, options.clips)
        clips += [clip for clip in drawn if is_wished(clip) or not options.wishes]
    clips = clips[: options.clips]
    sheet = contact_sheet(world, clips, [caption(clip, rng, "en") for clip in clips])
    write_file(options.out, lambda beside: sheet.save(beside, format="PNG"))
    print(options.out)


if __name__ == "__main__":
    main()
