import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from turbodiffusion.demo import bake as baking
from turbodiffusion.demo.bake import FRAMES, find_subjects, loop_indices
from turbodiffusion.demo.dressing import as_child, dress, sway
from turbodiffusion.demo.subjects import BY_NAME, KIND_MOTIONS, RELEASE
from turbodiffusion.errors import MissingFilesError, UserError

MODEL = Path(baking.__file__).parent / "model" / "model.json"


def _webp(colour, frames=4) -> bytes:
    pictures = [Image.new("RGBA", (64, 64)) for _ in range(frames)]
    for k, picture in enumerate(pictures):
        ImageDraw.Draw(picture).ellipse((8 + k, 8, 52 + k, 56), fill=colour)
    out = io.BytesIO()
    pictures[0].save(out, "WEBP", save_all=True, append_images=pictures[1:], lossless=True)
    return out.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with one tarball, the only pinned package, that holds all pictures of a cat and a girl."""
    folder, spec = tmp_path / "npm", "@art/pictures@1.0.0"
    folder.mkdir()
    path = baking.tarball(spec, folder)
    with tarfile.open(path, "w:gz") as tar:
        for code in {code for name in ("cat", "girl") for code in baking.arts(BY_NAME[name])} - {""}:
            data = _webp((255, 120, 0, 255))
            info = tarfile.TarInfo(f"package/assets/{code}.webp")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(baking, "PACKAGES", {spec: hashlib.sha256(path.read_bytes()).hexdigest()})
    return folder


def test_the_release_holds_todays_subjects_and_people():
    assert len(RELEASE) == len(set(RELEASE)) >= 60 and set(RELEASE) <= BY_NAME.keys()
    assert set(json.loads(MODEL.read_text())["about"]["subjects"]) <= set(RELEASE)
    assert {"woman", "man", "girl", "dancer"} <= set(RELEASE)
    used = {BY_NAME[name].kind for name in RELEASE}
    assert used <= KIND_MOTIONS.keys()


def test_subjects_are_found_by_name_and_by_set():
    assert tuple(row.name for row in find_subjects("release")) == tuple(n for n in BY_NAME if n in RELEASE)
    assert [row.name for row in find_subjects("dog, cat")] == ["cat", "dog"]  # the order of the table
    assert {row.name for row in find_subjects("release,whale")} == {*RELEASE, "whale"}
    assert len(find_subjects("all")) == len(BY_NAME)
    with pytest.raises(UserError, match="no 'giraf'; nearest: giraffe"):
        find_subjects("cat,giraf")
    with pytest.raises(UserError, match="nearest: release"):
        find_subjects("relaese")
    with pytest.raises(UserError, match="names nothing"):
        find_subjects(" , ")


def test_baking_tells_how_far_it_is_and_does_nothing_twice(packages, tmp_path):
    lines: list[str] = []
    path = baking.bake(tmp_path / "out", packages, find_subjects("cat,girl"), lines.append)
    assert lines[-2:] == ["1 of 2: cat", "2 of 2: girl"]
    with np.load(path) as file:
        assert {key for key in file if "/" in key} == {"sheet/cat", "sheet/girl", "standing/girl"}
    lines.clear()
    assert baking.bake(tmp_path / "out", packages, find_subjects("cat,girl"), lines.append) == path
    assert lines == [f"{path} is up to date"]
    baking.bake(tmp_path / "out", packages, find_subjects("cat"), lines.append)
    assert lines[-1] == "1 of 1: cat"  # another list is baked again


def test_what_cannot_work_fails_before_anything_is_downloaded(packages, tmp_path, monkeypatch):
    pinned = baking.PACKAGES
    monkeypatch.setattr(baking, "PACKAGES", pinned | {"@art/more@1.0.0": "0" * 64})
    called: list[object] = []
    monkeypatch.setattr(baking.subprocess, "run", lambda *arguments, **_: called.append(arguments))
    monkeypatch.setattr(baking.shutil, "which", lambda name: None)
    with pytest.raises(MissingFilesError, match=r"needs npm.*art-more-1\.0\.0\.tgz"):
        baking.bake(tmp_path / "out", packages, find_subjects("cat"))
    monkeypatch.setattr(baking.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(baking, "PACKAGE_BYTES", 10**18)
    with pytest.raises(MissingFilesError, match="MB free"):
        baking.bake(tmp_path / "out", packages, find_subjects("cat"))
    monkeypatch.setattr(baking, "PACKAGE_BYTES", 0)
    monkeypatch.setattr(baking, "PACKAGES", {"@art/more@1.0.0": "0" * 64} | dict.fromkeys(pinned, "1" * 64))
    with pytest.raises(MissingFilesError, match="not the pinned @art/pictures"):
        baking.bake(tmp_path / "out", packages, find_subjects("cat"))
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingFilesError, match="cannot write to"):
        baking.bake(tmp_path / "file", packages, find_subjects("cat"))
    assert not called


def test_a_failing_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    class Done:
        returncode, stderr = 1, "npm notice hello\nnpm error 404 Not Found\nnpm error more\n"

    monkeypatch.setattr(baking.subprocess, "run", lambda *_, **__: Done())
    monkeypatch.setattr(baking.shutil, "which", lambda name: "/usr/bin/npm")
    spec = next(iter(baking.PACKAGES))
    with pytest.raises(MissingFilesError, match=r"could not download .*: npm error 404 Not Found$"):
        baking.fetch_package(spec, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_errors_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bake", "--out", str(tmp_path), "--subjects", "catt"])
    with pytest.raises(SystemExit, match=r"^2$"):
        baking.main()
    assert capsys.readouterr().err.startswith("error: the demo world has no 'catt'; nearest: cat")


def test_a_short_loop_is_played_twice():
    assert loop_indices(33, (0.0, 1.0))[:2] == [0, 1] and loop_indices(33, (0.0, 1.0)).count(0) == 2
    assert loop_indices(72, (0.0, 1.0)).count(0) == 1
    assert set(loop_indices(1, (0.0, 1.0))) == {0}


def _person() -> Image.Image:
    """Purple above, two grey legs apart below, a face on top."""
    person = Image.new("RGBA", (200, 200))
    pen = ImageDraw.Draw(person)
    pen.rectangle((85, 0, 115, 35), fill=(240, 200, 180, 255))
    pen.rectangle((75, 40, 125, 94), fill=(140, 90, 210, 255))
    for x in (75, 111):
        pen.rectangle((x, 95, x + 14, 199), fill=(140, 135, 145, 255))
    return person


def test_a_dress_covers_what_is_between_the_legs():
    drawn = np.asarray(dress([_person()], "white", "red")[0]).astype(int)
    skirt, shirt, gap = drawn[140, 100], drawn[70, 100], drawn[195, 100]
    assert skirt[3] == 255 and skirt[0] > 150 > 100 > skirt[1]
    assert shirt[:3].min() > 200  # white
    assert gap[3] == 0  # below the hem the legs are apart
    assert (drawn[20, 100] == (240, 200, 180, 255)).all()  # the face keeps its colour
    wide = (drawn[..., 3] > 128).sum(1)
    assert wide[165] > wide[100]


def test_a_child_has_the_larger_head():
    head = Image.new("RGBA", (200, 200), (0, 255, 0, 255))
    child = np.asarray(as_child([_person()], [head])[0])
    green = (child[..., 1] > 200) & (child[..., 3] > 128) & (child[..., 0] < 50)
    assert 0.55 * 200 < green.any(0).sum() < 0.7 * 200
    assert (child[-1, :, 3] > 0).any()  # feet on the lower edge
    assert not ((child[..., 0] == 240) & (child[..., 1] == 200)).any()  # the other head is gone


def test_a_plant_bends_at_its_top_and_its_loop_closes():
    stick = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(stick).rectangle((47, 0, 53, 99), fill=(0, 120, 0, 255))
    frames = [np.asarray(frame)[..., 3].astype(float) for frame in sway(stick, FRAMES)]
    at = np.arange(100)
    top, foot = ([(f[row] * at).sum() / f[row].sum() for f in frames] for row in (2, 99))
    assert np.ptp(top) > 10 and np.ptp(foot) < 1
    steps = np.abs(np.diff([*top, top[0]]))
    assert steps[-1] <= steps.max() + 1e-9 and steps.max() < 8
