"""Bake the demo world's art: `python -m turbodiffusion.demo.bake --out .cache/demo-world`.

Downloads pinned npm packages through npm (whatever registry it is configured for), checks their hashes, and packs the
chosen animated pictures into one small file, `atlas.npz`: for each subject a WebP sheet of 48 frames (16 a second,
one loop of three seconds), cropped to the animation's own square, feet on the lower edge. The art is never committed.
Running it again does nothing where all is there.

Source of the pictures: Microsoft's fluentui-emoji-animated (MIT), as packed in @lobehub/fluent-emoji-anim-1 to -4
(MIT).
"""

import argparse
import difflib
import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from turbodiffusion.demo.subjects import BY_NAME, SUBJECTS, Subject
from turbodiffusion.errors import MissingFilesError, UserError

PACKAGES = {  # name, version -> sha256 of its tarball
    "@lobehub/fluent-emoji-anim-1@1.0.0": "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    "@lobehub/fluent-emoji-anim-2@1.0.0": "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    "@lobehub/fluent-emoji-anim-3@1.0.0": "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    "@lobehub/fluent-emoji-anim-4@1.0.0": "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
}
FRAMES = 48  # of one loop: 72 source frames at 24 a second are three seconds, so 48 play at 16 a second
CELL = 112  # pixels of a frame's side: a subject of 0.45 of 256 pixels is about as large
COLUMNS = 8
QUALITY = 80  # of the WebP sheet: about 100 KB a subject


def fetch_package(spec: str, folder: Path) -> Path:
    """The tarball of an npm package ("name@version") in `folder`, downloaded by `npm pack` if it is not there; its
    hash is checked."""
    name, version = spec.rsplit("@", 1)
    path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        if shutil.which("npm") is None:
            raise MissingFilesError(
                f"baking the demo world needs npm to download {spec} (or put {path.name} into {folder})"
            )
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["npm", "pack", spec, "--ignore-scripts"], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0 or not path.exists():
            raise MissingFilesError(f"npm could not download {spec}: {done.stderr.strip().splitlines()[-1:]}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PACKAGES[spec]:
        raise MissingFilesError(f"{path} is not the pinned {spec} (sha256 {digest[:12]}...): delete it and run again")
    return path


def read_art(paths: Iterable[Path], codes: set[str]) -> dict[str, bytes]:
    """The WebP bytes of each code point in `codes`, from the package tarballs; "26c4" also finds "26c4-fe0f.webp"."""
    found: dict[str, bytes] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                stem = Path(member.name).stem
                for code in {stem, stem.removesuffix("-fe0f")} & (codes - found.keys()):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found[code] = stream.read()
    missing = sorted(codes - found.keys())
    if missing:
        raise MissingFilesError(f"the packages hold no picture for {', '.join(missing)}")
    return found


def read_frames(data: bytes) -> list[Image.Image]:
    """All frames of an animated WebP as RGBA pictures."""
    movie = Image.open(io.BytesIO(data))
    frames = []
    for index in range(getattr(movie, "n_frames", 1)):
        movie.seek(index)
        frames.append(movie.convert("RGBA"))
    return frames


def loop_indices(count: int, window: tuple[float, float]) -> list[int]:
    """Which of `count` source frames make the FRAMES of the loop; a part of the loop is played to and fro."""
    if window == (0.0, 1.0):
        return [k * count // FRAMES for k in range(FRAMES)]
    first, last = window[0] * (count - 1), window[1] * (count - 1)
    there_and_back = [1.0 - abs(1.0 - 2.0 * k / FRAMES) for k in range(FRAMES)]
    return [round(first + (last - first) * x) for x in there_and_back]


def bake_sheet(subject: Subject, data: bytes) -> bytes:
    """One subject's WebP sheet: FRAMES cells of CELL x CELL, row by row, COLUMNS a row."""
    source = read_frames(data)
    frames = [source[k] for k in loop_indices(len(source), subject.window)]
    alpha = np.max([np.asarray(frame)[..., 3] for frame in frames], axis=0)
    if subject.crop:
        alpha[round(alpha.shape[0] * (1.0 - subject.crop)) :] = 0
    rows, columns = np.where(alpha.max(1) > 8)[0], np.where(alpha.max(0) > 8)[0]
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    side = max(right - left, bottom - top) + 4
    x, y = (left + right - side) // 2, bottom + 2 - side
    sheet = Image.new("RGBA", (COLUMNS * CELL, FRAMES // COLUMNS * CELL))
    for k, frame in enumerate(frames):
        kept = frame.crop((0, 0, frame.width, int(bottom)))
        cell = kept.transform((int(side), int(side)), Image.Transform.AFFINE, (1, 0, int(x), 0, 1, int(y)))
        sheet.paste(cell.resize((CELL, CELL), Image.Resampling.LANCZOS), (k % COLUMNS * CELL, k // COLUMNS * CELL))
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=QUALITY, alpha_quality=90, method=4)
    return out.getvalue()


def bake(out: Path, packages: Path, subjects: Sequence[Subject] = SUBJECTS) -> Path:
    """Write `out`/atlas.npz and return its path; tarballs are looked for, and kept, in `packages`."""
    pictured = [(s.name, s.art, s.window, s.crop) for s in subjects]
    recipe = hashlib.sha256(repr((pictured, FRAMES, CELL, COLUMNS, QUALITY, PACKAGES)).encode()).hexdigest()
    path = out / "atlas.npz"
    if path.exists():
        with np.load(path) as old:
            if str(old["recipe"]) == recipe:
                return path
    art = read_art((fetch_package(spec, packages) for spec in PACKAGES), {subject.art for subject in subjects})
    sheets = {f"sheet/{s.name}": np.frombuffer(bake_sheet(s, art[s.art]), np.uint8) for s in subjects}
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "atlas.partial.npz"
    np.savez(partial, recipe=np.array(recipe), **sheets)  # type: ignore[arg-type]
    partial.replace(path)
    return path


def find_subject(name: str) -> Subject:
    """The table's row of that name; UserError names the nearest."""
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=3, cutoff=0.3)
        raise UserError(f"the demo world has no {name!r}; nearest: {', '.join(near) or 'cat'}")
    return BY_NAME[name]


def main() -> None:
    parser = argparse.ArgumentParser(description="bake the demo world's art into OUT/atlas.npz")
    parser.add_argument("--out", type=Path, default=Path(".cache/demo-world"))
    parser.add_argument("--packages", type=Path, help="folder of the npm tarballs (default: OUT/npm)")
    parser.add_argument("--subjects", help="names from the table, separated by commas (default: all)")
    options = parser.parse_args()
    subjects = SUBJECTS
    if options.subjects:
        subjects = tuple(find_subject(name.strip()) for name in options.subjects.split(","))
    path = bake(options.out, options.packages or options.out / "npm", subjects)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {len(subjects)} subjects)")


if __name__ == "__main__":
    main()
