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
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from turbodiffusion.demo.dressing import as_child, dress, sway
from turbodiffusion.demo.subjects import BY_NAME, RELEASE, SUBJECTS, Subject
from turbodiffusion.errors import MissingFilesError, UserError
from turbodiffusion.files import write_file

PACKAGES = {  # name, version -> sha256 of its tarball
    "@lobehub/fluent-emoji-anim-1@1.0.0": "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    "@lobehub/fluent-emoji-anim-2@1.0.0": "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    "@lobehub/fluent-emoji-anim-3@1.0.0": "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    "@lobehub/fluent-emoji-anim-4@1.0.0": "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
}
FRAMES = 48  # of one loop: 72 source frames at 24 a second are three seconds, so 48 play at 16 a second
CELL = 112  # pixels of a frame's side: a subject of 0.45 of 256 pixels is about as large
COLUMNS = 8
RECIPE = 3  # grows when the same table is to be baked another way
PACKAGE_BYTES = 200_000_000  # of one tarball, at most
SETS: dict[str, tuple[str, ...]] = {"release": RELEASE, "all": tuple(BY_NAME)}  # names for --subjects
QUALITY = 80  # of the WebP sheet: about 100 KB a subject


def tarball(spec: str, folder: Path) -> Path:
    """Where the tarball of an npm package ("name@version") lies in `folder`."""
    name, version = spec.rsplit("@", 1)
    return folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def fetch_package(spec: str, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Path:
    """The tarball of an npm package in `folder`, downloaded by `npm pack` if it is not there; its hash is checked."""
    path = tarball(spec, folder)
    if path.exists():
        return check_package(spec, folder)
    if shutil.which("npm") is None:
        raise MissingFilesError(
            f"baking the demo world needs npm to download {spec} (or put {path.name} into {folder})"
        )
    tell(f"downloading {spec}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as beside:  # a download that is cut off leaves nothing behind
        done = subprocess.run(["npm", "pack", spec, "--ignore-scripts"], cwd=beside, capture_output=True, text=True)
        fresh = tarball(spec, Path(beside))
        if done.returncode != 0 or not fresh.exists():
            why = next((line for line in done.stderr.splitlines() if "npm notice" not in line and line.strip()), "")
            raise MissingFilesError(f"npm could not download {spec}: {why.strip() or 'it says nothing'}")
        fresh.replace(path)
    return check_package(spec, folder)


def check_package(spec: str, folder: Path) -> Path:
    """The path of a package's tarball in `folder`; MissingFilesError where it is not the pinned one."""
    path = tarball(spec, folder)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
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
    """Which of `count` source frames make the FRAMES of the loop, a short loop twice; a part of one is played to and
    fro."""
    if window == (0.0, 1.0):
        repeats = max(1, round(72 / count)) if count > 1 else 1
        return [k * count * repeats // FRAMES % count for k in range(FRAMES)]
    first, last = window[0] * (count - 1), window[1] * (count - 1)
    there_and_back = [1.0 - abs(1.0 - 2.0 * k / FRAMES) for k in range(FRAMES)]
    return [round(first + (last - first) * x) for x in there_and_back]


def loop(subject: Subject, data: bytes) -> list[Image.Image]:
    """The FRAMES pictures of a subject's loop, of an animated WebP; a plant's picture is made to sway."""
    source = read_frames(data)
    if len(source) == 1 and subject.kind == "plant":
        return sway(source[0], FRAMES)
    return [source[k] for k in loop_indices(len(source), subject.window)]


def bake_sheet(subject: Subject, data: bytes, head: bytes = b"") -> bytes:
    """One subject's WebP sheet: FRAMES cells of CELL x CELL, row by row, COLUMNS a row; `head` is another picture's."""
    frames = loop(subject, data)
    if subject.clothes:
        frames = dress(frames, *subject.clothes, flare=0.09 if head else 0.03)
    if head:
        frames = as_child(frames, loop(subject, head))
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


def bake(
    out: Path, packages: Path, subjects: Sequence[Subject] = SUBJECTS, tell: Callable[[str], None] = lambda line: None
) -> Path:
    """Write `out`/atlas.npz and return its path; tarballs are looked for, and kept, in `packages`.

    tell: called with a line on each step. What can be known to fail is looked at before anything is downloaded.
    """
    pictured = [(s.name, s.kind, s.window, s.crop, s.clothes, *arts(s)) for s in subjects]
    recipe = hashlib.sha256(repr((RECIPE, pictured, FRAMES, CELL, COLUMNS, QUALITY, PACKAGES)).encode()).hexdigest()
    path = out / "atlas.npz"
    if path.exists():
        with np.load(path) as old:
            if str(old["recipe"]) == recipe:
                tell(f"{path} is up to date")
                return path
    prepare_folders(out, packages)
    fetched = [fetch_package(spec, packages, tell) for spec in PACKAGES]
    tell("reading the pictures")
    art = read_art(fetched, {code for subject in subjects for code in arts(subject)} - {""})
    sheets = {}
    for k, subject in enumerate(subjects):
        tell(f"{k + 1} of {len(subjects)}: {subject.name}")
        head = art.get(subject.head, b"")
        sheets[f"sheet/{subject.name}"] = np.frombuffer(bake_sheet(subject, art[subject.art], head), np.uint8)
        if subject.standing:
            sheet = bake_sheet(subject, art[subject.standing], head)
            sheets[f"standing/{subject.name}"] = np.frombuffer(sheet, np.uint8)
    write_file(path, lambda beside: _savez(beside, {"recipe": np.array(recipe), **sheets}))
    return path


def _savez(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """np.savez under the very name: given a path, it would add its own ending."""
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def arts(subject: Subject) -> tuple[str, str, str]:
    """The pictures that a subject is made of, "" for one that it does without."""
    return subject.art, subject.standing, subject.head


def prepare_folders(out: Path, packages: Path) -> None:
    """Make both folders; MissingFilesError where they cannot be written, are too small for what is to be downloaded,
    hold a tarball that is not the pinned one, or where npm is missing."""
    for folder in (out, packages):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise MissingFilesError(f"cannot write to {folder}: {error.strerror}") from None
    absent = [spec for spec in PACKAGES if not tarball(spec, packages).exists()]
    if absent and shutil.which("npm") is None:
        names = ", ".join(tarball(spec, packages).name for spec in absent)
        raise MissingFilesError(
            f"baking the demo world needs npm to download its pictures (or put {names} into {packages})"
        )
    free, needed = shutil.disk_usage(packages).free, PACKAGE_BYTES * len(absent)
    if free < needed:
        raise MissingFilesError(f"{packages} has {free / 1e6:.0f} MB free, the downloads need {needed / 1e6:.0f} MB")
    for spec in PACKAGES:
        if spec not in absent:
            check_package(spec, packages)


def find_subject(name: str) -> Subject:
    """The table's row of that name; UserError names the nearest."""
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, [*BY_NAME, *SETS], n=3, cutoff=0.3)
        raise UserError(f"the demo world has no {name!r}; nearest: {', '.join(near) or 'cat'}")
    return BY_NAME[name]


def find_subjects(names: str) -> tuple[Subject, ...]:
    """The rows of names separated by commas, in the order of the table; a name of SETS stands for all of its own."""
    chosen: set[str] = set()
    for name in filter(None, (part.strip() for part in names.split(","))):
        chosen |= set(SETS[name]) if name in SETS else {find_subject(name).name}
    if not chosen:
        raise UserError(f"--subjects names nothing: name subjects or one of {', '.join(SETS)}")
    return tuple(row for row in SUBJECTS if row.name in chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description="bake the demo world's art into OUT/atlas.npz")
    parser.add_argument("--out", type=Path, default=Path(".cache/demo-world"))
    parser.add_argument("--packages", type=Path, help="folder of the npm tarballs (default: OUT/npm)")
    parser.add_argument(
        "--subjects",
        default="all",
        help="names from the table, separated by commas; `release` for those of the shipped model (default: all)",
    )
    options = parser.parse_args()

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        subjects = find_subjects(options.subjects)
        path = bake(options.out, options.packages or options.out / "npm", subjects, tell)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {len(subjects)} subjects)")


if __name__ == "__main__":
    main()
