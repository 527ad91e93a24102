"""The judge's tables: prompts, controls, clips that are the pipeline's, rows by their names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from turbodiffusion.config import REFERENCE, TRITON
from turbodiffusion.demo.factors import is_held_out
from turbodiffusion.errors import MachineError, RequestError, UserError
from turbodiffusion.evaluation import evaluate as judge
from turbodiffusion.evaluation.evaluate import (
    Questions,
    control_rows,
    difference_rows,
    evaluate,
    evaluate_command,
    held_out_questions,
    old_rows,
    predict_model,
    variant_rows,
)
from turbodiffusion.evaluation.judge import grade
from turbodiffusion.evaluation.result_file import REQUIRED, VARIANTS, missing, read_results
from turbodiffusion.evaluation.targets import chances, target_of
from turbodiffusion.inference.batch import Variant, load_variant, make_clips, parse_variant

# Paints worlds and trains: too long for make test-fast.
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return load_variant(Variant("teacher", str(tiny_model)), CPU)


def test_prompts_are_held_out_half_chinese_and_the_same_every_time(overfitted, small_world) -> None:
    probe, _, _ = overfitted
    asked = held_out_questions(probe, 20, small_world.subjects)
    assert all(is_held_out(clip) and not clip.second for clip in asked.clips)
    chinese = [any("\u4e00" <= letter <= "\u9fff" for letter in prompt) for prompt in asked.prompts]
    assert chinese == [False, True] * 10
    assert asked.prompts == held_out_questions(probe, 20, small_world.subjects).prompts
    assert asked.labels.shape == (20, 6)
    assert all(clip.row.name in prompt for clip, prompt in zip(asked.clips[::2], asked.prompts[::2], strict=True))


def unguided(model):
    return model.with_network(replace(model.preset, guidance=1.0), model.transformer)


def test_a_batch_has_the_pipelines_clips(tiny, tiny_model) -> None:
    pytest.importorskip("av")
    from turbodiffusion.inference.pipeline import Pipeline
    from turbodiffusion.request import Request

    prompts = ["a red fox hops", "一只红色的狐狸在草地上奔跑"]
    videos = make_clips(tiny, prompts, [11, 12])
    # Prompts and guidance are seen by far more than the rounding that is allowed below.
    for other in (make_clips(tiny, prompts[::-1], [11, 12]), make_clips(unguided(tiny), prompts, [11, 12])):
        assert (other - videos).abs().flatten(1).amax(1).min() > 3 / 127.5
    pipeline = Pipeline.load(str(tiny_model), device="cpu")
    for prompt, seed, video in zip(prompts, (11, 12), videos, strict=True):
        frames = torch.from_numpy(pipeline.generate(Request(prompt, seed=seed)).frames).permute(3, 0, 1, 2)
        # sums in another order, and then rounded: one step of 255 at most
        assert (frames / 127.5 - 1 - video).abs().max() < 1.5 / 127.5


def test_a_variant_runs_the_kernels_that_it_names(tiny_model) -> None:
    """In Triton's interpreter where there is no GPU: the same clips but for rounding."""
    kinds = {"triton": TRITON, "reference": REFERENCE}
    models = [load_variant(Variant("teacher", str(tiny_model), kernels=kernels), CPU) for kernels in kinds]
    assert [model.transformer.config.kernels for model in models] == [*kinds.values()]
    assert [model.transformer.blocks[0].self_attn.fused_qkv for model in models] == [True, False]
    assert [model.vae.impl for model in models] == [*kinds]
    for model in models:  # its head is zero before any training
        torch.nn.init.normal_(model.transformer.head.head.weight, generator=torch.Generator().manual_seed(0))
    ours, expected = (make_clips(model, ["a red fox hops", "a blue ball rolls"], [11, 12]) for model in models)
    assert not torch.equal(ours, expected)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)
    with pytest.raises(RequestError, match="kernels=triton and --compile exclude each other"):
        load_variant(Variant("x", str(tiny_model), kernels="triton"), CPU, compile=True)
    with pytest.raises(MachineError, match="kernels 'cuda': there are auto, reference, triton"):
        load_variant(Variant("x", str(tiny_model), kernels="cuda"), CPU)


def test_a_distilled_variant_takes_one_forward_a_step(tiny) -> None:
    """The batched rCM loop: sample_rcm's, from the seeds' own noise; one step is x0 at sigma_max."""
    from turbodiffusion.inference.sampling import noise
    from turbodiffusion.schedules import rcm_times

    changes = {"sampler": "rcm", "sigma_max": 80.0, "num_steps": 1, "guidance": None, "shift": None}
    student = tiny.with_network(replace(tiny.preset, **changes), tiny.transformer)
    (video,) = make_clips(student, ["a blue ball rolls"], [5])
    t = rcm_times(1, 80.0)[0]
    x = noise((1, 16, 2, 8, 8), 0, 0)
    x[0] = noise((16, 2, 8, 8), 5, 0) * t
    with torch.no_grad():
        context = tiny.transformer.encode_context(tiny.prompt_encoder.encode("a blue ball rolls"))
        clean = x.double() - t * tiny.transformer(x, torch.tensor([1000 * t]), context).double()
        expected = tiny.vae.decode(clean.float()).clamp(-1, 1)
    torch.testing.assert_close(video, expected[0], rtol=0, atol=1e-4)  # float32 in batches of one either way


def test_controls_come_out_bad(overfitted, small_world) -> None:
    """On the clips that the probe knows by heart; chance is what an answer drawn from its answers would reach."""
    probe, bank, _ = overfitted
    clips = [bank._factors(k) for k in range(32)]
    asked = Questions(clips, [""] * 32, bank.answers.numpy())
    rows = {row.name: row for row in control_rows(probe, small_world, asked, bank.view)}
    assert rows["control.none.subject"].value > 0.9
    shuffled = rows["control.shuffled.subject"]
    assert shuffled.value < 0.7 and shuffled.target is not None and shuffled.better == "lower"
    assert "chance is" in shuffled.method and "quick check" in shuffled.method
    assert rows["control.noise.subject"].value < rows["control.none.subject"].value
    assert all(rows[f"control.{kind}.motion"].target is not None for kind in ("shuffled", "noise"))
    assert {"control.frozen.still", "control.frozen.motion", "control.noise.motion"} <= rows.keys()


def test_shuffled_labels_give_chance(overfitted) -> None:
    """Of K equally frequent answers 1 / K are right by chance, whatever is read: 4,000 clips, four deviations."""
    probe, _, _ = overfitted
    config, rng = probe.config, np.random.default_rng(0)
    sizes = [len(answers) for _, answers in config.classes]
    right = np.stack([rng.integers(0, size, 4000) for size in sizes], 1)
    read = right[rng.permutation(4000)]
    for (question, answers), marked in zip(
        config.classes, grade(read, right, config, strict=True).values(), strict=True
    ):
        chance = 1 / len(answers)
        assert abs(marked.mean() - chance) < 4 * (chance * (1 - chance) / len(marked)) ** 0.5, question


def test_rows_of_a_model(overfitted, small_world, tiny) -> None:
    probe, _, _ = overfitted
    asked = held_out_questions(probe, 6, small_world.subjects)
    predictions = predict_model(tiny, probe, asked.prompts, range(6), batch=4, label="teacher")
    assert predictions.answers.shape == (6, 6) and predictions.features.shape == (6, 64)
    known = {f"control.none.{question}": 0.5 for question in probe.config.questions}
    rows = variant_rows("teacher", predictions, probe, asked, predictions.features, known)
    named = {row.name: row for row in rows}
    assert named["teacher.subject.adherence"].target == pytest.approx(0.48)
    assert "of renders'" in named["teacher.subject.adherence"].method
    assert named["teacher.frechet"].value == pytest.approx(0, abs=1e-6)
    for row in difference_rows("rcm4", predictions, "teacher", predictions, probe, asked):
        assert row.value == 0 and "paired" in row.method


def test_targets_are_shares_of_the_teacher() -> None:
    """Issue's numbers: 96% of renders for the teacher; 95, 90, 80 and 93% of it, 1.25 and 85% for its students."""
    known = {"control.none.subject": 0.9, "teacher.subject.adherence": 0.8, "teacher.frechet": 2.0}
    known["teacher.diversity"] = 3.0
    expected = {
        "teacher.subject.adherence": 0.96 * 0.9,
        "rcm4.subject.adherence": 0.95 * 0.8,
        "rcm2.subject.adherence": 0.9 * 0.8,
        "rcm1.subject.adherence": 0.8 * 0.8,
        "rcm4_sla015_w8a8.subject.adherence": 0.93 * 0.8,
        "rcm4_sla010.subject.adherence": 0.93 * 0.8 - 0.02,
        "rcm4.frechet": 2.5,
        "rcm4_sla015_w8a8.diversity": 0.85 * 3,
    }
    assert {row: target_of(row, known) for row in expected} == pytest.approx(expected)
    for row in ("rcm4_sla015_untrained.subject.adherence", "rcm1.frechet", "teacher.frechet", "other.diversity"):
        assert target_of(row, known) is None
    assert target_of("rcm4.motion.adherence", known) is None  # of a teacher that was not measured


def test_chance_is_what_other_truths_give(overfitted) -> None:
    """Constant answers are right as often as the truth has them; a constant truth makes every share certain."""
    config = overfitted[0].config
    rng = np.random.default_rng(1)
    right = np.stack([rng.integers(0, len(answers), 3000) for _, answers in config.classes], 1)
    constant = np.zeros_like(right)
    found = chances(constant, right, config)
    k = config.questions.index("scene")
    chance, target = found["scene"]
    assert chance == pytest.approx((right[:, k] == 0).mean())  # whatever the order
    assert target == pytest.approx(chance + 3 * (chance * (1 - chance) / 3000) ** 0.5)


def test_the_new_teacher_is_compared_on_the_old_ones_subjects(overfitted, small_world, tiny, monkeypatch) -> None:
    """Half of the old one's distance without its VAE's share, and the new VAE's on top."""
    probe, _, _ = overfitted
    old = tiny.with_network(replace(tiny.preset, subjects=("octopus",)), tiny.transformer)
    seen = []

    def watched(model, prompts, seeds):
        seen.append(prompts)
        return make_clips(model, prompts, seeds)

    monkeypatch.setattr(judge, "make_clips", watched)
    rows = {row.name: row for row in old_rows(small_world, probe, old, tiny, 4, batch=4)}
    assert [*rows] == [
        f"{name}{part}.frechet" for name in ("old_teacher", "teacher.old_subjects") for part in (".vae", "")
    ]
    assert seen[0] == seen[1] and all("octopus" in prompt for prompt in seen[0][::2])
    value = {name: row.value for name, row in rows.items()}
    half = (value["old_teacher.frechet"] - value["old_teacher.vae.frechet"]) / 2
    target = rows["teacher.old_subjects.frechet"].target
    assert target == pytest.approx(value["teacher.old_subjects.vae.frechet"] + half)


def test_a_report_has_the_variants_that_it_knows(overfitted, small_atlas, tiny_model, tmp_path) -> None:
    _, _, run = overfitted
    for wrong, named in (([f"rcm4={tiny_model}"], "rcm4"), ([f"teacher={tiny_model}", f"x={tiny_model}"], "x")):
        with pytest.raises(RequestError, match=f"--quality compares the teacher.*not {named}$"):
            evaluate_command(wrong, run / "probe.safetensors", small_atlas, quality=True)
    path = tmp_path / "quality.json"
    given = [f"{name}={tiny_model}" for name in ("teacher", "rcm4", "old_teacher")]
    evaluate_command(given, run / "probe.safetensors", small_atlas, output=path, prompts=4, batch=4, quality=True)
    rows = {row.name: row for row in read_results(path)}
    lacking = {row.name for row in missing([*rows.values()], [*REQUIRED[path.name].values()])}
    of_others = [name for name in VARIANTS if name not in ("teacher", "rcm4")]
    assert all(name.endswith("cpu.seconds") or name.split(".")[0] in of_others for name in lacking)
    assert rows["rcm4.scene.adherence"].target == pytest.approx(0.95 * rows["teacher.scene.adherence"].value)
    assert rows["rcm4.frechet"].target == pytest.approx(1.25 * rows["teacher.frechet"].value)


def test_evaluate_writes_the_rows_that_a_result_file_needs(overfitted, small_world, tiny_model) -> None:
    probe, _, _ = overfitted
    variants = [Variant("teacher", str(tiny_model)), Variant("rcm4", str(tiny_model), num_steps=1)]
    found = evaluate(small_world, probe, variants, prompts=6, batch=6, diverse=2, seeds=2, vae_clips=2)
    rows = [row for part in found for row in part]
    names = {row.name for row in rows}
    assert len(names) == len(rows)
    needed = {name for name in REQUIRED["demo.json"] if not name.startswith("demo.cpu")}
    assert needed <= names
    assert {"teacher.diversity", "rcm4.diversity", "rcm4.motion.difference", "render.frechet", "vae.ssim"} <= names
    assert all(np.isfinite(row.value) for row in rows if not row.name.endswith(".diversity"))  # some have no pair
    vae, floor = (next(row for row in rows if row.name == f"{name}.frechet") for name in ("vae", "render"))
    assert vae.value > floor.value  # an untrained VAE's renders are another matter


def test_a_perfect_model_reads_as_its_renders_do(overfitted, small_world, tiny_model, monkeypatch) -> None:
    """What makes a render of the prompt it is given has the adherence of renders, and no Frechet distance to them."""
    probe, _, _ = overfitted
    count, seeds, asked_for = 12, 3, []
    asked = held_out_questions(probe, count, small_world.subjects)
    renders = dict(zip(asked.prompts, asked.clips, strict=True))

    def perfect(model, prompts, seeds):
        asked_for.append((list(prompts), list(seeds)))
        return small_world.render([renders[prompt] for prompt in prompts])

    monkeypatch.setattr(judge, "make_clips", perfect)
    variants = [Variant(name, str(tiny_model)) for name in ("teacher", "rcm4", "rcm2")]
    found = evaluate(small_world, probe, variants, prompts=count, batch=5, diverse=2, seeds=seeds, vae_clips=2)
    rows = {row.name: row.value for part in found for row in part}
    for name in ("teacher", "rcm4", "rcm2"):
        for factor in ("subject", "colour", "motion", "scene"):
            assert rows[f"{name}.{factor}.adherence"] == rows[f"control.none.{factor}"]
        assert rows[f"{name}.frechet"] == pytest.approx(0, abs=0.05)  # roots of nearly singular covariances
        assert rows[f"{name}.diversity"] == pytest.approx(0, abs=1e-4)
    assert rows["render.frechet"] > 0.01  # other renders of these prompts are another matter
    assert 0 < rows["control.none.subject"] < 1 or 0 < rows["control.none.motion"] < 1  # an order can be wrong
    third = len(asked_for) // 3
    teachers, *students = (asked_for[k * third : (k + 1) * third] for k in range(3))
    assert students == [teachers, teachers]  # paired: the same prompts and seeds for each variant
    assert [prompt for prompts, _ in teachers for prompt in prompts] == asked.prompts + [
        prompt for prompt in asked.prompts[:2] for _ in range(seeds)
    ]
    drawn = [seed for _, many in teachers for seed in many]
    assert drawn == list(range(1, count + 2 * seeds + 1))


def test_variants_are_read_from_the_command_line() -> None:
    assert parse_variant("teacher=demo") == Variant("teacher", "demo")
    assert parse_variant("plain=demo,kernels=reference") == Variant("plain", "demo", kernels="reference")
    text = "rcm4_sla015_w8a8=models/rcm,num_steps=4,attention_type=sla,sla_topk=0.15,quant_linear=int8_row"
    assert parse_variant(text) == Variant("rcm4_sla015_w8a8", "models/rcm", 4, None, "sla", 0.15, "int8_row")
    for wrong, said in (("demo", "NAME=MODEL"), ("a=b,steps=4", "num_steps"), ("a=b,num_steps=x", "num_steps=x")):
        with pytest.raises(RequestError, match=said):
            parse_variant(wrong)


def test_what_does_not_fit_is_refused(overfitted, small_world, tiny_model, tmp_path) -> None:
    probe, _, run = overfitted
    with pytest.raises(RequestError, match="there are auto, original, sla"):
        load_variant(Variant("x", str(tiny_model), attention_type="fast"), CPU)
    wider = replace(probe.config, size=(64, 96))
    other = type(probe)(wider)
    with pytest.raises(UserError, match="5 frames at 64x64, the probe was trained on 5 at 96x64"):
        next(evaluate(small_world, other, [Variant("teacher", str(tiny_model))], prompts=2))
    with pytest.raises(RequestError, match="NAME=MODEL"):
        evaluate_command(["demo"], run, Path("none"), tmp_path / "x.json")


@pytest.mark.slow
def test_what_a_video_costs_on_a_cpu(tiny_model, tmp_path) -> None:
    pytest.importorskip("av")
    evaluate_command([f"teacher={tiny_model}"], Path("none"), Path("none"), tmp_path / "demo.json", cpu=True)
    seconds, gigabytes = read_results(tmp_path / "demo.json")
    assert (seconds.name, gigabytes.name) == ("demo.cpu.seconds", "demo.cpu.peak_gb")
    assert seconds.value > 0 and 0.1 < gigabytes.value < 8  # PyTorch alone takes more than 100 MB
