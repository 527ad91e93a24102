"""The command line: what it prints where, its exit codes, what it asks of the pipeline."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from turbodiffusion import __version__
from turbodiffusion.cli import main as cli
from turbodiffusion.cli.progress import Display
from turbodiffusion.media import video
from turbodiffusion.media.metadata import read_metadata
from turbodiffusion.presets import MODELS
from turbodiffusion.request import Progress, Request


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one call in this process."""
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def mp4_of(request: Request) -> bytes:
    """An mp4 as the pipeline writes it, without the pipeline."""
    encoder = video.Encoder(64, 48, 16, {"request": request.to_json()})
    encoder.add(np.zeros((5, 72, 64), np.uint8))
    return encoder.finish()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "generate"),
        (["generate", "--help", "--lang", "zh"], "提示词"),
        (["models"], "wan2.2-i2v-a14b"),
        (["info", "made.mp4"], "a red fox"),
        (["generate", " "], "the prompt is empty"),
        (["generate", "a fox", "--seed", "abc"], "whole number"),
    ],
)
def test_quick_answers_import_nothing_heavy(tmp_path, arguments, words):
    (tmp_path / "made.mp4").write_bytes(mp4_of(Request("a red fox")))
    heavy = ["torch", "numpy", "PIL", "pydantic", "httpx", "huggingface_hub.file_download"]
    code = (
        f"import sys; from turbodiffusion.cli.main import main; main({arguments!r}); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and words in done.stdout + done.stderr


@pytest.mark.parametrize("linears", ["off", "int8_row"])
def test_a_video_needs_no_compiler_and_no_transformers(tmp_path, linears):
    """Either takes seconds to import, and each process would pay: PyTorch imports its compiler where it is touched."""
    words = ["a red ball", "--num-frames", "5", "--num-steps", "1", "--resolution", "64x64", "--device", "cpu"]
    words += ["--quant-linear", linears]
    heavy = ["torch._dynamo", "sympy", "transformers"]
    code = (
        "import sys; from turbodiffusion.cli.main import main; "
        f"assert main(['generate', *{words}, '--output', sys.argv[1]]) == 0; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_program_and_version(capsys):
    assert run(capsys, "--version") == (0, f"turbodiffusion {__version__}\n", "")
    code, out, _ = run(capsys)
    assert code == 0 and 'generate "an orange cat' in out.replace("\n", "")
    done = subprocess.run([sys.executable, "-m", "turbodiffusion", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"turbodiffusion {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "--nonsense"),
        (["generat", "a cat"], "generat"),
        (["generate", "a cat", "--num-steps", "four"], "--num-steps 'four': a whole number is needed"),
        (["generate"], "give one prompt"),
        (["generate", "a", "red", "fox"], '"a red fox"'),
        (["generate", "--prompts-file"], "requires an argument"),
        (["generate", "a cat", "--prompts-file", "p.txt"], "not both"),
        (["generate", "--prompts-file", "none.txt"], "none.txt cannot be read: No such file"),
        (["generate", "--prompts-file", "empty.txt"], "empty.txt has no prompt"),
        (["generate", "--prompts-file", "latin.txt"], "latin.txt is not text in UTF-8"),
        (["info", "none.mp4"], "there is no file none.mp4"),
        (["again", "empty.txt"], "empty.txt cannot be read as a video"),
    ],
)
def test_errors_are_one_line_and_code_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")  # a narrow terminal does not break the line either
    (tmp_path / "empty.txt").write_text("# nothing\n\n   \n")
    (tmp_path / "latin.txt").write_bytes("un café".encode("latin-1"))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_a_refusal_in_chinese(capsys):
    code, _, err = run(capsys, "generate", "  ", "--lang", "zh")
    assert code == 2 and err.startswith("错误：") and "提示词为空" in err


def test_info(capsys, tmp_path):
    request = Request(prompt="一只红色的气球 [bold] 🎈", model="demo", num_steps=4, seed=42)
    path = tmp_path / "made.mp4"
    path.write_bytes(mp4_of(request))
    code, out, err = run(capsys, "info", str(path))
    assert (code, err) == (0, "")
    assert request.prompt in out and "num_steps" in out and "guidance" not in out
    path.write_bytes(mp4_of(Request("a fox", attention_type="dense")))
    assert "original (dense attention)" in run(capsys, "info", str(path))[1]
    assert json.loads(run(capsys, "info", str(path), "--json")[1])["attention_type"] == "original"
    path.write_bytes(mp4_of(request))
    code, out, _ = run(capsys, "info", str(path), "--json")
    assert Request.from_json(out) == request and json.loads(out)["seed"] == 42


def steps(display, stage: str, total: int) -> None:
    for step in range(total + 1):
        display(Progress(stage, step, total, 125.0 * (total - step) if step else None))


def test_progress_in_a_log_is_plain():
    text = io.StringIO()
    with Display(Console(file=text), interval=0) as display:
        steps(display, "denoise", 4)
    assert text.getvalue().splitlines() == [
        "denoise 1/4, 6 min 15 s left",
        "denoise 2/4, 4 min 10 s left",
        "denoise 3/4, 2 min 05 s left",
        "denoise 4/4",
    ]


def test_progress_in_a_log_is_short():
    text = io.StringIO()
    with Display(Console(file=text), interval=1e9) as display:
        steps(display, "denoise", 4)
        steps(display, "vae_decode", 100)
    assert text.getvalue().splitlines() == ["denoise 4/4", "vae_decode 100/100"]


def test_progress_on_a_terminal_fits_and_vanishes():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=60, legacy_windows=False)
    with Display(console) as display:
        steps(display, "denoise", 4)
    shown = text.getvalue()
    assert "2/4, 4 min 10 s left" in shown and "━" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the bars are erased; the summary takes their place


def test_quiet_progress_prints_nothing():
    text = io.StringIO()
    with Display(Console(file=text, quiet=True, force_terminal=True)) as display:
        display(Progress("denoise", 1, 4, 30.0))
    assert text.getvalue() == ""


# ---- real videos of a tiny model ----


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, so that `outputs` lies there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_distilled(tiny_model, tmp_path_factory):
    """The tiny model, told that it is distilled: rCM, sparse attention's topk to be set."""
    folder = tmp_path_factory.mktemp("models") / "tiny_distilled"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "model.json").read_text())
    config["sampling"] = {"sampler": "rcm", "num_steps": 4, "sigma_max": 80.0, "resolution": "64x64", "num_frames": 5}
    (folder / "model.json").write_text(json.dumps(config))
    return folder


def test_generate_and_again(capsys, here, tiny_model):
    prompt = "一只红色的狐狸 rolls [red] 🎈"
    code, out, err = run(capsys, "generate", prompt, "--model", str(tiny_model), "--seed", "42", "--contact-sheet")
    assert code == 0
    assert re.fullmatch(r"outputs/t2v_42_Tiny_\d{8}_\d{6}\.mp4\n", out)
    path = Path(out.strip())
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, path.with_suffix(".png").name])
    summary = [line for line in err.splitlines() if line.startswith("done")]
    assert len(summary) == 1 and "64x64, 5 frames, 2 steps, seed 42" in summary[0]
    for stage in ("load", "text_encode", "denoise", "vae_decode", "mp4_encode"):
        assert stage in summary[0]
    frames = video.read_frames(path)
    assert frames.shape == (5, 64, 64, 3)
    assert json.loads(run(capsys, "info", str(path), "--json")[1])["prompt"] == prompt

    code, out, _ = run(capsys, "again", str(path), "--output", "more")
    assert code == 0
    same = Path(out.strip())
    assert same.parent == Path("more") and same.read_bytes() == path.read_bytes()

    code, out, _ = run(capsys, "again", str(path), "--num-steps", "3", "--seed", "7", "--quiet")
    assert code == 0
    other = Request.from_json(read_metadata(Path(out.strip()))["request"])
    assert (other.prompt, other.num_steps, other.seed) == (prompt, 3, 7)


def test_a_drawn_seed_is_named_and_recorded(capsys, here, tiny_model):
    code, out, err = run(capsys, "generate", "a red fox", "--model", str(tiny_model), "--quiet")
    assert (code, err) == (0, "")
    seed = int(Path(out.strip()).name.split("_")[1])
    assert seed > 0 and json.loads(run(capsys, "info", out.strip(), "--json")[1])["seed"] == seed


def test_an_offloaded_text_encoder_makes_the_same_file(capsys, here, tiny_model):
    made = []
    for options in ([], ["--offload-text", "on", "--max-memory", "1"]):
        code, out, _ = run(capsys, "generate", "a red fox", "--model", str(tiny_model), "--seed", "3", *options)
        assert code == 0
        made.append(Path(out.strip()).read_bytes())
    assert made[0] == made[1]


def test_output_may_be_a_file(capsys, here, tiny_model):
    make = ("generate", "a red fox", "--model", str(tiny_model), "--seed", "3", "--quiet", "--output", "new/Fox.MP4")
    assert run(capsys, *make) == (0, "new/Fox.MP4\n", "")
    assert run(capsys, *make) == (0, "new/Fox_2.MP4\n", "")  # what is there stays
    (here / "folder.mp4").mkdir()
    code, out, _ = run(capsys, *make[:-1], "folder.mp4")
    assert code == 0 and Path(out.strip()).parent == Path("folder.mp4")


def test_one_file_for_several_videos_is_refused(capsys, here, tiny_model):
    (here / "p.txt").write_text("a fox\na ball\n")
    arguments = ("generate", "--prompts-file", "p.txt", "--model", str(tiny_model), "--output", "o/v.mp4")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and "2 videos: name a folder, as o/v" in err
    assert [path.name for path in here.iterdir()] == ["p.txt"]


def test_home_is_written_as_a_tilde(capsys, here, tiny_model, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    (here / "home" / "p.txt").write_text("a red fox\n")
    arguments = ["generate", "--prompts-file", "~/p.txt", "--model", str(tiny_model), "--output", "~/made", "--quiet"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and Path(out.strip()).parent == here / "home" / "made"
    code, _, err = run(capsys, "generate", "it snows", "--model", "wan2.2-i2v-a14b", "--image", "~/none.png")
    assert code == 2 and str(here / "home" / "none.png") in err


def test_who_asks_for_854x480_is_told_what_480p_is(capsys, here, tiny_model):
    code, _, err = run(capsys, "generate", "a fox", "--model", str(tiny_model), "--resolution", "854x480")
    assert code == 0 and "note: 854x480 is made as 864x480 and cut; 480p at 16:9 is 832x480" in err


def test_several_prompts_load_the_model_once(capsys, here, tiny_model, monkeypatch):
    from turbodiffusion.inference.pipeline import Pipeline

    loads = []
    load = Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    (here / "p.txt").write_text("# three\na red fox hops\n\n一只蓝色的狐狸\na ball\n", encoding="utf-8")
    code, out, err = run(
        capsys, "generate", "--prompts-file", "p.txt", "--model", str(tiny_model), "--seed", "5", "--output", "o"
    )
    assert code == 0 and len(loads) == 1
    prompts = [json.loads(run(capsys, "info", line, "--json")[1])["prompt"] for line in out.splitlines()]
    assert prompts == ["a red fox hops", "一只蓝色的狐狸", "a ball"]
    assert len(set(out.splitlines())) == 3 == len(list((here / "o").glob("*.mp4")))
    assert "2/3 一只蓝色的狐狸" in err


def test_recipes(capsys, here, tiny_model, tiny_distilled):
    code, out, _ = run(capsys, "generate", "a fox", "--model", str(tiny_distilled), "--recipe", "draft", "--quiet")
    request = Request.from_json(read_metadata(Path(out.strip()))["request"])
    assert code == 0 and request.num_steps == 2
    code, out, _ = run(capsys, "again", out.strip(), "--recipe", "draft", "--num-steps", "1", "--quiet")
    assert code == 0 and Request.from_json(read_metadata(Path(out.strip()))["request"]).num_steps == 1
    code, _, err = run(capsys, "generate", "a fox", "--model", str(tiny_model), "--recipe", "draft")
    assert code == 2 and "recipe draft is for distilled models" in err
    code, _, err = run(capsys, "generate", "a fox", "--model", str(tiny_distilled), "--recipe", "drat")
    assert code == 2 and "'draft'" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-frames", "80"], "81 is the nearest"),
        (["--num-steps", "0"], "num_steps"),
        (["--resolution", "32x64"], "too small"),
        (["--attention-type", "slaa"], "sla"),
        (["--model", "wan2.1-t2v-1.4b"], "wan2.1-t2v-1.3b"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--image", "x.png"], "text alone"),
        (["--output", "file"], "is a file"),
        (["--offload-text", "maybe"], "there are auto, on, off"),
        (["--max-memory", "0.001"], "(--max-memory 0.001) has 0.0 GiB of memory free"),
        (["--max-memory", "nan"], "--max-memory 'nan': a finite number is needed"),
        (["--seed", "abc"], "--seed 'abc': a whole number is needed"),
        (["--seed", "9" * 5000], "a whole number is needed"),
        (["--guidance", "much"], "--guidance 'much': a finite number is needed"),
        (["--quant-linear", "True"], "did you mean 'on'?"),
        (["--quant-linear", "False"], "did you mean 'off'?"),
        (["--resolution", "480p", "--aspect-ratio", "16:10"], "did you mean '16:9'?"),
        (["--resolution", ""], "resolution is empty"),
        (["--model", ""], "model is empty"),
        (["--image", ""], "--image is empty"),
        (["--output", ""], "--output is empty"),
        (["--device", "cpu:99"], "device 'cpu:99': there are auto, cpu, cuda"),
        (["--output", "~nouser/x"], "--output ~nouser/x: there is no such user's home"),
        (["--image", "~nouser/x.png"], "--image ~nouser/x.png: there is no such user's home"),
        (["--output", "file/video.mp4"], "is a file or lies under one"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(capsys, here, tiny_model, arguments, words):
    (here / "file").write_text("mine")
    code, out, err = run(capsys, "generate", "a fox", "--model", str(tiny_model), *arguments)
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, "") and len(error) == 1 and err.splitlines()[-1] == error[0] and words in error[0]
    assert [path.name for path in here.iterdir()] == ["file"]


@pytest.mark.parametrize(("name", "words"), [("none.jpg", "no image none.jpg"), ("broken.jpg", "is not an image")])
def test_a_broken_picture_is_told_before_what_the_machine_lacks(capsys, here, monkeypatch, name, words):
    monkeypatch.setattr("turbodiffusion.memory.plan.plan", lambda *_, **__: pytest.fail("memory was planned"))
    (here / "broken.jpg").write_text("no picture")
    code, _, err = run(capsys, "generate", "it snows", "--model", "wan2.2-i2v-a14b", "--image", name)
    assert code == 2 and words in err and err.count("\n") == 1


def test_empty_prompt(capsys, here, tiny_model):
    code, _, err = run(capsys, "generate", "  ", "--model", str(tiny_model))
    assert code == 2 and "the prompt is empty" in err


def test_a_distilled_models_first_noise_has_bounds(capsys, here, tiny_distilled):
    code, _, err = run(capsys, "generate", "a fox", "--model", str(tiny_distilled), "--sigma-max", "1e300")
    assert code == 2 and "sigma_max 1e+300: at most 10000, 80 by default" in err


def test_distilled_models_take_one_to_four_steps(capsys, here, tiny_distilled):
    code, _, err = run(capsys, "generate", "a fox", "--model", str(tiny_distilled), "--num-steps", "5")
    assert code == 2 and err.startswith("error: ") and "4" in err


def test_again_with_another_size_drops_the_stored_aspect_ratio(capsys, here, tiny_model):
    stored = Request("a fox", model=str(tiny_model), resolution="480p", aspect_ratio="9:16", seed=3)
    (here / "made.mp4").write_bytes(mp4_of(stored))
    code, out, _ = run(capsys, "again", "made.mp4", "--resolution", "70x66", "--quiet")
    assert code == 0 and video.read_frames(out.strip()).shape == (5, 66, 70, 3)


def test_unexpected_errors_keep_their_traceback(here, tiny_model, monkeypatch):
    from turbodiffusion.inference.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "a fox", "--model", str(tiny_model)])


def test_ctrl_c_is_130(capsys, here, tiny_model, monkeypatch):
    from turbodiffusion.inference.pipeline import Pipeline

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    code, out, err = run(capsys, "generate", "a fox", "--model", str(tiny_model))
    assert (code, out) == (130, "") and err.splitlines()[-1].startswith("interrupted")


def test_convert(capsys, here, tiny_model):
    code, out, err = run(capsys, "convert", str(tiny_model), "copy")
    assert (code, out) == (0, "copy\n") and err.startswith("done")
    code, out, _ = run(capsys, "generate", "a fox", "--model", "copy", "--quiet")
    assert code == 0 and Path(out.strip()).is_file()
    code, out, err = run(capsys, "convert", str(tiny_model), "c.safetensors", "--quantize", "int7")
    assert (code, out) == (2, "") and "int8_block" in err and not (here / "c.safetensors").exists()
    code, out, err = run(capsys, "convert", "none.pth", "folder")
    assert (code, out) == (2, "") and "none.pth does not exist" in err
    code, out, err = run(capsys, "convert", "copy", "student", "--sampler", "rcm")
    assert code == 0 and json.loads((here / "student" / "model.json").read_text())["sampling"]["sampler"] == "rcm"
    code, out, err = run(capsys, "convert", "copy", "none", "--sampler", "ddim")
    assert (code, out) == (2, "") and "rcm" in err


def test_the_sampler_and_own_parts_on_the_command_line(capsys, here, tiny_model):
    code, out, _ = run(capsys, "generate", "a fox", "--model", str(tiny_model), "--sampler", "rcm", "--recipe", "draft")
    stored = Request.from_json(read_metadata(Path(out.strip()))["request"])
    assert (code, stored.sampler, stored.num_steps) == (0, "rcm", 2)
    vae = str(tiny_model / "vae.safetensors")
    code, out, _ = run(capsys, "generate", "a fox", "--model", str(tiny_model), "--vae", vae, "--quiet")
    assert code == 0 and Path(out.strip()).is_file()
    for options, words in (
        (("--text-encoder", vae), "is not a Wan text encoder checkpoint: it holds a VAE"),
        (("--tokenizer", vae), "is no tokenizer"),
        (("--vae", "none.pth"), "none.pth does not exist"),
        (("--sampler", "euler"), "did you mean 'flow'"),
    ):
        code, out, err = run(capsys, "generate", "a fox", "--model", str(tiny_model), *options)
        assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("section", "value"),
    [("sampling", []), ("about", []), ("sampling", {"fps": 10**12}), ("transformer", {"dim": 10**9}), ("text", None)],
)
def test_a_model_folder_with_broken_numbers_is_one_line(capsys, here, tiny_model, section, value):
    shutil.copytree(tiny_model, here / "broken")
    model = json.loads((here / "broken" / "model.json").read_text())
    (here / "broken" / "model.json").write_text(json.dumps(model | {section: value}))
    code, out, err = run(capsys, "generate", "a fox", "--model", "broken")
    assert (code, out) == (2, "") and "model.json" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 60, 120])
def test_models_are_listed(capsys, monkeypatch, width, lang):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run(capsys, "models", "--lang", lang)
    assert code == 0 and max(map(cell_len, out.splitlines())) <= width
    starts = [*(out.index(name) for name in MODELS), len(out)]
    for preset, start, end in zip(MODELS.values(), starts, starts[1:], strict=False):
        after = out[start + len(preset.name) : end]
        for number in (preset.num_frames, preset.num_steps):
            assert re.search(rf"\b{number}\b", after)


def test_files_in_the_cache_are_found_as_the_hub_library_finds_them(tmp_path, monkeypatch):
    from huggingface_hub import constants, try_to_load_from_cache

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "models--owner--name" / "snapshots" / "abc" / "folder" / "weights.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"1")
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("abc")
    for repo, path, there in (
        ("owner/name", "folder/weights.pth", True),
        ("owner/name", "weights.pth", False),
        ("owner/other", "folder/weights.pth", False),
    ):
        found = try_to_load_from_cache(repo, path, cache_dir=tmp_path)
        assert cli._in_cache(repo, path) == isinstance(found, str) == there
