"""Distillation as it runs: what a step sees and adds up, resuming, and the commands from a teacher to a fast model."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import turbodiffusion as td
from turbodiffusion.checkpoint.places import open_checkpoint
from turbodiffusion.cli import main as cli
from turbodiffusion.errors import RequestError
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.training import artifacts
from turbodiffusion.training.data import LatentBank
from turbodiffusion.training.recipes import rcm, sla
from turbodiffusion.training.trainer import Schedule, step_generator, torch_generator


def over(t_B: Tensor) -> Tensor:
    return t_B[:, None, None, None, None]


@pytest.fixture
def parts(tiny_model, small_world):
    """A teacher whose head is not zero, networks, and a bank of four clips."""
    known = artifacts.read_teacher(str(tiny_model), torch.device("cpu"))
    torch.manual_seed(5)
    nn.init.normal_(known.transformer.head.head.weight, std=0.1)
    bank = LatentBank(small_world, known.vae, known.prompt_encoder.tokenizer, size=4, refresh=2, seed=3, captions=2)
    student, fake = (artifacts.new_like(known.transformer) for _ in range(2))
    return rcm.Networks(student, fake, known.transformer, known.prompt_encoder.encoder), bank


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items()}


@pytest.fixture
def legs(parts, tmp_path: Path, monkeypatch):
    """Runs of seven steps that stop where they are told; what they leave."""
    networks, bank = parts

    def leg(folder: str, until: int, lr: float = 1e-3, **fields) -> dict[str, Tensor]:
        def fit(trainer, loss, prepare) -> None:
            prepare(trainer.step)
            while trainer.step < until:
                trainer._optimize(loss)
            trainer.save()

        monkeypatch.setattr(rcm.Trainer, "fit", fit)
        bank.end = 0
        recipe = rcm.RCMRecipe(batch=2, warmup=2, student_every=2, compile=False, **fields)
        schedule = Schedule(lr=lr, steps=7, warmup=1, betas=(0.0, 0.999), weight_decay=0.0)
        trainer = rcm.train_rcm(networks, bank, recipe, schedule, tmp_path / folder)
        ema = {f"ema.{name}": x.clone() for name, x in trainer.ema_state().items()}
        return weights(trainer.modules) | ema

    return leg


@pytest.mark.slow
@pytest.mark.parametrize("consistency", ["continuous", "discrete"])
def test_a_stopped_run_is_the_run_that_was_not(parts, legs, consistency: str) -> None:
    teacher = weights(parts[0].teacher)
    whole = legs("whole", 7, consistency=consistency)
    legs("part", 4, consistency=consistency)
    again = legs("part", 7, consistency=consistency)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    name = "blocks.0.ffn.0.weight"
    assert len({whole[f"{key}.{name}"].sum().item() for key in ("student", "fake", "ema.student")}) == 3
    assert all(torch.equal(x, teacher[key]) for key, x in weights(parts[0].teacher).items())


@pytest.mark.slow
def test_both_networks_begin_as_the_teacher_and_the_fake_score_is_slower(parts, legs) -> None:
    teacher = weights(parts[0].teacher)
    start = legs("still", 3, lr=0.0)
    for key in ("student", "fake", "ema.student"):
        assert all(torch.equal(start[f"{key}.{name}"], x) for name, x in teacher.items())
    moved = legs("moving", 4)  # student, student, student, fake
    first = "blocks.0.ffn.0.weight"
    of = {key: (moved[f"{key}.{first}"] - teacher[first]).abs().max().item() for key in ("student", "fake")}
    assert of["fake"] == pytest.approx(0.2e-3, rel=0.02) and of["student"] > 1e-3  # Adam's first step is its rate


@pytest.fixture
def stepped(parts):
    """A step of a recipe, and what its fields see."""
    networks, bank = parts
    bank.advance(0)

    def at(step: int = 0, **fields) -> rcm._Step:
        recipe = rcm.RCMRecipe(batch=2, compile=False, **fields)
        forward = {name: getattr(networks, name) for name in ("student", "fake", "teacher")}
        return rcm._Step(networks, bank, recipe, step, forward)

    return at


@torch.no_grad()
def test_the_teacher_is_guided_by_an_empty_prompt(parts, stepped) -> None:
    (networks, bank), at = parts, stepped(guidance=3.0)
    network, t_B = networks.teacher, torch.tensor([0.3, 1.2])
    s_B = t_B.sin() / (t_B.cos() + t_B.sin())
    x = torch.randn_like(at.x0)

    def velocity(states: Tensor) -> Tensor:
        return network(x / over(t_B.cos() + t_B.sin()), 1000 * s_B, network.encode_context(states))

    free = velocity(networks.text(bank.empty_ids.long(), bank.empty_mask.long()).expand_as(at.states))
    v = free + 3 * (velocity(at.states) - free)
    expected = (over(t_B.cos() - t_B.sin()) * x + v) / over(t_B.cos() + t_B.sin())
    torch.testing.assert_close(at.guided_teacher()(x, t_B), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(at.guided_teacher()(x, t_B), at.field("teacher")(x, t_B), atol=1e-3)


def test_ranks_and_steps_draw_their_own(stepped, monkeypatch) -> None:
    first, again, later = stepped(0).noise(), stepped(0).noise(), stepped(1).noise()
    monkeypatch.setattr(rcm, "rank_and_size", lambda: (1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, stepped(0).noise())


def test_students_begin_at_the_top_and_go_down(stepped, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(rcm, "rollout", lambda student, noises, times: seen.append((noises, times)))
    stepped(sigma_max=20.0).made(lambda x, t_B: x, 4)
    ((noises, times),) = seen
    assert len(noises) == 4 and not torch.equal(noises[0], noises[1])
    assert all((times[k] > times[k + 1]).all() for k in range(3))
    assert times[0].tolist() == pytest.approx([math.atan(20)] * 2)


def test_what_a_step_adds_up(parts, monkeypatch) -> None:
    """100 times the consistency loss at a growing ratio, then DMD too, on samples of 1 to 4 steps in turn."""
    networks, bank = parts
    recipe = rcm.RCMRecipe(batch=2, warmup=2, student_every=2, dmd_weight=0.5, compile=False)
    loss, found = rcm.make_loss(networks, bank, recipe), {}

    def watch(name: str) -> None:
        original = getattr(rcm, name)

        def watched(*args, **kwargs):
            found[name] = args, kwargs
            return original(*args, **kwargs)

        monkeypatch.setattr(rcm, name, watched)

    for name in ("consistency_loss", "dmd_loss", "fake_score_loss", "rollout"):
        watch(name)
    for network, scale in ((networks.student, 0.2), (networks.fake, 0.3)):  # three networks that can be told apart
        nn.init.normal_(network.head.head.weight, std=scale)
    x, t_B = torch.randn(2, 16, 2, 8, 8), torch.tensor([0.4, 1.1])
    for step in range(12):
        found.clear()
        values = loss(step)
        at = rcm._Step(networks, bank, recipe, step, {n: getattr(networks, n) for n in ("student", "fake", "teacher")})
        with torch.no_grad():
            student, fake, teacher = at.field("student")(x, t_B), at.field("fake")(x, t_B), at.guided_teacher()(x, t_B)
            if recipe.select_network(step) == "fake":
                assert values.keys() == {"loss", "mse", "broken"} and found.keys() == {"fake_score_loss", "rollout"}
                made, field, *_ = found["fake_score_loss"][0]
                torch.testing.assert_close(field(x, t_B), fake)
                assert not made.requires_grad and torch.equal(made, rcm.rollout(*found["rollout"][0]))
            else:
                (seen, F, at_x, at_t, ratio), kwargs = found["consistency_loss"]
                torch.testing.assert_close(seen(x, t_B), student)
                torch.testing.assert_close(kwargs["derived"](x, t_B), student)
                torch.testing.assert_close(F, at.guided_teacher()(at_x, at_t))
                assert ratio == min(1.0, step / 2)
                terms = {"term.consistency": 100 * values["consistency"]}
                if step >= 2:
                    terms["term.dmd"] = 0.5 * values["dmd"]
                assert {name: float(x) for name, x in values.items() if name.startswith("term.")} == terms
                torch.testing.assert_close(values["loss"], torch.stack(list(terms.values())).sum())
                assert ("dmd_loss" in found) == (step >= 2)
            if "dmd_loss" in found:
                _, of_fake, of_teacher, *_ = found["dmd_loss"][0]
                torch.testing.assert_close(of_fake(x, t_B), fake)
                torch.testing.assert_close(of_teacher(x, t_B), teacher)
            if step >= 2:
                assert len(found["rollout"][0][2]) == recipe.rollout_steps(step)


@pytest.mark.parametrize("every", [2, 4, 5, 10])
def test_samples_of_one_to_four_steps_are_as_frequent_in_both_turns(every: int) -> None:
    recipe = rcm.RCMRecipe(warmup=3, student_every=every)
    for network in ("student", "fake"):
        counts = [recipe.rollout_steps(step) for step in range(3, 403) if recipe.select_network(step) == network]
        assert counts == [1 + n % 4 for n in range(len(counts))]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_samples_of_one_step_have_the_share_that_was_asked_for(share: float) -> None:
    recipe = rcm.RCMRecipe(warmup=0, one_step_share=share)
    for network in ("student", "fake"):
        counts = [recipe.rollout_steps(step) for step in range(600) if recipe.select_network(step) == network]
        assert abs(counts.count(1) - share * len(counts)) < 1
        others = [n for n in counts if n != 1]
        assert others == [2 + n % 3 for n in range(len(others))]


def test_the_students_times_are_those_of_the_recipe(parts, monkeypatch) -> None:
    networks, bank = parts
    times = []

    def watched(student, F, x, t_B, ratio, **_):
        times.append(t_B)
        return rcm.Losses(0 * t_B, t_B < 0)

    monkeypatch.setattr(rcm, "consistency_loss", watched)
    loss = rcm.make_loss(networks, bank, rcm.RCMRecipe(batch=64, sigma_mean=0.7, sigma_std=0.5, compile=False))
    for step in range(8):
        loss(step)
    drawn = torch.cat(times).tan().log()
    assert drawn.mean().item() == pytest.approx(0.7, abs=0.1) and drawn.std().item() == pytest.approx(0.5, abs=0.06)


def flow_times(t_B: Tensor) -> Tensor:
    """Unshifted: u of the flow time 5 u / (1 + 4 u) at TrigFlow's t."""
    s = t_B.tan() / (1 + t_B.tan())
    return s / (5 - 4 * s)


@pytest.mark.parametrize("consistency", ["continuous", "discrete"])
def test_other_times_are_uniform_before_a_shift_of_five(parts, monkeypatch, consistency: str) -> None:
    """Those of the scores over all flow times, of the discrete loss up to 47/48, of a rollout below sigma_max."""
    networks, bank = parts
    seen: dict[str, list[Tensor]] = {"dmd": [], "fake": [], "rollout": [], "discrete": []}
    none = rcm.Losses(torch.zeros(64), torch.zeros(64, dtype=torch.bool))

    def rollout(student, noises, times):
        seen["rollout"] += times[1:]
        return noises[0]

    monkeypatch.setattr(rcm, "rollout", rollout)
    monkeypatch.setattr(rcm, "dmd_loss", lambda made, fake, teacher, noise, t: seen["dmd"].append(t) or none)
    monkeypatch.setattr(rcm, "fake_score_loss", lambda made, fake, noise, t: seen["fake"].append(t) or none)
    monkeypatch.setattr(rcm, "consistency_loss", lambda *args, **_: none)
    monkeypatch.setattr(rcm, "discrete_consistency_loss", lambda *args: seen["discrete"].append(args[-1]) or none)
    recipe = rcm.RCMRecipe(batch=64, warmup=0, student_every=2, sigma_max=4.0, consistency=consistency, compile=False)
    loss = rcm.make_loss(networks, bank, recipe)
    for step in range(8):
        loss(step)
    top = 0.8 / (5 - 4 * 0.8)  # sigma 4 is the flow time 0.8
    ranges = {"dmd": 1.0, "fake": 1.0, "rollout": top} | ({"discrete": 47 / 48} if consistency == "discrete" else {})
    for name, end in ranges.items():
        u = torch.cat(seen[name]) if name == "discrete" else flow_times(torch.cat(seen[name]))
        assert len(u) >= 256 and u.min() >= 0 and 0.97 * end < u.max() < end * 1.001, name
        if name != "rollout":  # whose times are sorted, but all of them are here
            assert u.mean().item() == pytest.approx(end / 2, abs=4 * end / (12 * len(u)) ** 0.5), name
            assert u.std().item() == pytest.approx(end / 12**0.5, rel=0.1), name
    assert bool(seen["discrete"]) == (consistency == "discrete")


@pytest.mark.parametrize("recipe", ["rcm", "sla"])
def test_captions_are_dropped_where_guidance_asks_without_one(parts, monkeypatch, recipe: str) -> None:
    """A tenth for sparse attention, whose network is asked without a caption later; none for a student."""
    networks, bank = parts
    empty, shares = bank.empty_ids[0].long(), []
    batch = bank.batch

    def watched(*args, **kwargs):
        made = batch(*args, **kwargs)
        shares.append((made.ids_BS == empty).all(1).float().mean().item())
        return made

    monkeypatch.setattr(bank, "batch", watched)
    bank.advance(0)
    if recipe == "rcm":
        forward = {name: getattr(networks, name) for name in ("student", "fake", "teacher")}
        for step in range(3):
            rcm._Step(networks, bank, rcm.RCMRecipe(batch=400, compile=False), step, forward)
        assert shares == [0, 0, 0]
    else:
        monkeypatch.setattr(sla, "sla_loss", lambda dense, sparse, x, t, states: x.sum())
        loss = sla.make_loss(
            networks.teacher, networks.student, networks.text, bank, sla.SLARecipe(batch=1000, compile=False)
        )
        loss(0)
        assert shares[0] == pytest.approx(0.1, abs=5 * 0.3 / 1000**0.5)  # five standard errors


def test_the_command_makes_the_recipe(tiny_model, small_atlas, tmp_path: Path, monkeypatch) -> None:
    """By default the teacher's own guidance, the published betas and rates; and each option reaches its field."""
    seen = []

    def caught(networks, bank, recipe, schedule, run, **rest):
        seen.append((recipe, schedule, rest["teacher"]))
        raise RequestError("caught")

    monkeypatch.setattr(rcm, "train_rcm", caught)
    few = ["--teacher", str(tiny_model), "--atlas", str(small_atlas), "--folder", str(tmp_path)]
    options = {
        "guidance": (3.0, "guidance"),
        "sigma-mean": (0.5, "sigma_mean"),
        "sigma-max": (20.0, "sigma_max"),
        "student-every": (3, "student_every"),
        "one-step-share": (0.5, "one_step_share"),
        "fake-rate": (0.7, "fake_rate"),
        "dmd-weight": (0.25, "dmd_weight"),
        "warmup": (7, "warmup"),
        "consistency": ("discrete", "consistency"),
        "batch": (3, "batch"),
    }
    given = [word for name, (value, _) in options.items() for word in (f"--{name}", str(value))]
    assert cli.main(["train", "rcm", *few]) != 0
    assert (
        cli.main(["train", "rcm", *few, *given, "--minutes", "8", "--lr", "3e-4", "--clip", "9", "--no-compile"]) != 0
    )
    (recipe, schedule, teacher), (other, timed, _) = seen
    assert recipe == rcm.RCMRecipe(guidance=4.0)  # the tiny model's own
    assert (recipe.fake_rate, recipe.sigma_mean, recipe.student_every, recipe.one_step_share) == (0.2, 1.0, 5, 0.25)
    assert schedule == Schedule(lr=1e-4, steps=5000, betas=(0.0, 0.999))
    assert teacher == artifacts.digest(artifacts.read_teacher(str(tiny_model), torch.device("cpu")).transformer)
    assert {field: getattr(other, field) for _, field in options.values()} == {f: v for v, f in options.values()}
    assert timed == Schedule(lr=3e-4, minutes=8, betas=(0.0, 0.999), clip=9) and not other.compile


@pytest.mark.parametrize("consistency", ["continuous", "discrete"])
def test_every_weight_of_the_student_learns_under_autocast(parts, monkeypatch, consistency: str) -> None:
    """What autocast keeps of a pass without gradients would leave weights without one."""
    networks, bank = parts
    recipe = rcm.RCMRecipe(batch=2, warmup=0, consistency=consistency, compile=False)
    autocast = torch.autocast

    def always(device, dtype=None, **rest):
        return autocast(device, dtype, **rest | {"enabled": dtype is not None})  # without one it is switched off

    monkeypatch.setattr(torch, "autocast", always)
    values = rcm.make_loss(networks, bank, recipe)(0)
    for name in ("term.consistency", "term.dmd"):  # each has a graph of its own, as the trainer needs it
        values[name].backward()
    assert [name for name, p in networks.student.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_from_a_teacher_to_a_fast_model(tiny_model, small_atlas, tmp_path: Path, capsys) -> None:
    """As a user does: distil, tune for sparse attention, merge, and make a video of the folder."""
    few = ["--teacher", str(tiny_model), "--atlas", str(small_atlas), "--batch", "2", "--clips", "4", "--refresh", "2"]
    for name, extra in (
        ("rcm", ["--steps", "5", "--warmup", "2", "--no-compile", "--lr", "0.5"]),  # a fortieth, in its warm-up
        ("sla", ["--steps", "2", "--topk", "0.2", "--lr", "0.5"]),
    ):
        assert cli.main(["train", name, "--folder", str(tmp_path / name), *few, *extra]) == 0, capsys.readouterr().err
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert log and all(math.isfinite(value) for value in log[-1].values())
        norms = {"grad_norm.consistency.student", "grad_norm.dmd.student", "grad_norm.fake"}
        assert name == "sla" or norms | {"loss.student", "dmd.student", "loss.fake"} < log[-1].keys()
        state = torch.load(tmp_path / name / "state.pt", weights_only=True)
        written = artifacts.read_weights(tmp_path / name / f"{name}.safetensors")
        kept = [key.split(".", 1)[1] for key in state["modules"] if not key.startswith("fake.")]
        assert written.keys() == set(kept)
        for key, average in zip(kept, state["ema"], strict=True):
            assert torch.equal(written[key], average.to(torch.bfloat16).float())
        if name == "rcm":
            for part in ("student", "fake"):
                written = artifacts.read_weights(tmp_path / name / f"{part}.safetensors")
                assert all(torch.equal(x, state["modules"][f"{part}.{key}"].bfloat16()) for key, x in written.items())
    assert len(list((tmp_path / "rcm").glob("samples-5-in-[421].png"))) == 3
    left = [
        f"--{option}={tmp_path}/rcm/{part}.safetensors" for option, part in (("from", "student"), ("from-fake", "fake"))
    ]
    on = ["rcm", *few, "--no-compile", "--steps", "1", "--lr", "0", "--folder", str(tmp_path / "on")]
    assert cli.main(["train", *on, *left]) == 0, capsys.readouterr().err
    for part in ("student", "fake"):
        before, after = (artifacts.read_weights(tmp_path / run / f"{part}.safetensors") for run in ("rcm", "on"))
        assert all(torch.equal(x, after[key]) for key, x in before.items())
    before = artifacts.read_weights(tmp_path / "on" / "student.safetensors")
    assert all(
        torch.equal(x, before[key]) for key, x in artifacts.read_weights(tmp_path / "on" / "rcm.safetensors").items()
    )
    tuned = artifacts.read_weights(tmp_path / "sla" / "sla.safetensors")
    pretrained = artifacts.read_teacher(str(tiny_model), torch.device("cpu")).transformer.state_dict()
    rest = ["--rcm", str(tmp_path / "rcm" / "rcm.safetensors"), "--teacher", str(tiny_model)]
    for folder, extra, kind in (
        ("dense", [], "original"),
        ("sparse", ["--sla", str(tmp_path / "sla" / "sla.safetensors")], "sla"),
    ):
        extra = [*extra, "--format", "bf16"]
        assert cli.main(["train", "merge", str(tmp_path / folder), *rest, *extra]) == 0, capsys.readouterr().err
        pipe = td.Pipeline.load(str(tmp_path / folder))
        assert pipe.model.compute.attention_type == kind and (kind == "original" or pipe.model.compute.sla_topk == 0.2)
        stored = open_checkpoint(tmp_path / folder, "transformer")
        for name, x in artifacts.read_weights(tmp_path / "rcm" / "rcm.safetensors").items():
            change = tuned[name] - pretrained[name].float() if kind == "sla" else torch.zeros(())
            assert torch.equal(stored.read(name).reshape(x.shape), (x + change).bfloat16())
        preset = pipe.model.preset
        assert preset.sigma_max == 80 and preset.sampler == "rcm" and preset.num_steps == 4
        result = pipe.generate(td.Request(prompt="a red fox hops", seed=2))
        assert result.frames.shape == (5, 64, 64, 3) and not any("fine-tuned" in notice for notice in result.notices)
    of_sla = ["--rcm", str(tmp_path / "sla" / "sla.safetensors"), "--teacher", str(tiny_model)]
    for arguments, words in (
        (["merge", str(tmp_path / "x"), *of_sla], "is no file of `train rcm`"),
        (["merge", str(tmp_path / "x"), *rest[:2], "--teacher", "demo"], "was trained from another model than demo"),
        (["merge", str(tmp_path / "x"), *[x.replace("rcm.safe", "fake.safe") for x in rest]], "is a fake score"),
        (["rcm", "--teacher", str(tmp_path / "dense"), "--folder", str(tmp_path / "y")], "is no teacher"),
        (["rcm", "--steps", "5", "--warmup", "9"], "end within --warmup 9"),
        ([*on, left[0]], "--from and --from-fake go together"),
        ([*on, left[0], left[1].replace("fake.safetensors", "rcm.safetensors")], "holds no fake of `train rcm`"),
        ([*on[:1], *on[3:], *left], "was distilled from another teacher"),
        ([*on, "--warmup", "0", "--guidance", "3"], "was begun with guidance 4.0, and cannot go on with 3.0"),
    ):
        assert cli.main(["train", *arguments]) != 0
        error = capsys.readouterr().err
        assert words in " ".join(error.split()) and "Traceback" not in error


@pytest.mark.slow
def test_a_sparse_network_learns_to_say_what_the_dense_one_says(parts, tmp_path: Path) -> None:
    networks, bank = parts
    dense = networks.teacher
    sparse = WanTransformer(replace(dense.config, attention_type="sla", sla_topk=0.25, sla_block_q=8, sla_block_k=8))
    seen = {}
    hook = dense.register_forward_pre_hook(lambda _, args: seen.update(x=args[0], t=args[1]))
    bank.advance(0)
    sla.make_loss(dense, sparse, networks.text, bank, sla.SLARecipe(batch=2, compile=False))(0)
    hook.remove()
    rng = step_generator(12, 0, 0)
    x0 = bank.batch(rng, 2, drop=0.1).latent_BCTHW.float()
    generator = torch_generator(rng, torch.device("cpu"))
    noise, t_B = torch.randn(x0.shape, generator=generator), (1.5 + 1.6 * torch.randn(2, generator=generator)).sigmoid()
    torch.testing.assert_close(seen["x"], x0 + over(t_B) * (noise - x0))
    torch.testing.assert_close(seen["t"], 1000 * t_B)
    bank.end = 0
    still = Schedule(lr=0.0, steps=1)
    sla.train_sla(dense, sparse, networks.text, bank, sla.SLARecipe(batch=2, compile=False), still, tmp_path / "still")
    assert all(torch.equal(sparse.state_dict()[name], x) for name, x in dense.state_dict().items())
    bank.end = 0
    schedule = Schedule(lr=3e-3, steps=30, warmup=2, log_every=1)
    sla.train_sla(dense, sparse, networks.text, bank, sla.SLARecipe(batch=4, compile=False), schedule, tmp_path)
    log = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(log[-5:]) < 0.7 * sum(log[:5])
    assert sparse.state_dict()["blocks.0.self_attn.attention.proj_l.weight"].any()
