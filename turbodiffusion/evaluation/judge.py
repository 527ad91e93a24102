"""The judge of the demo model: a small video network that reads from a clip what its prompt asked for.

It sees nine frames at 128 x 128 and answers the questions of `demo.factors.CLASSES`: subject, colour, motion, scene,
light, camera. 2D convolutions on each frame, between which a part of the channels is taken from the frame before and
after (temporal shift, Lin et al., arXiv 1811.08383): nine frames are read for the price of nine pictures. The last maps
are pooled, which tells what is there, and read place by place and frame by frame, which tells its path. `HIDDEN`, the
last layer before the answers, has 64 features; Frechet distance and diversity are taken there.

It is trained on fresh renders with seeds of their own, held-out combinations among them (a judge should know all that
can be asked), with blur, noise, brightness and, given a VAE, that VAE's own losses, because it is going to judge
decoded samples. Some clips are frozen on one frame and labelled still, so that motion is not guessed from a pose.

What counts as right: an equal answer, with two exceptions. Motion and camera are marked as one where a viewer could
not tell them apart (LOOK_ALIKES): something that comes near before a still camera, and something still that the camera
zooms in on. Colour is marked where the full caption names one: a subject of several colours in its own paint has none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, pad

from turbodiffusion.checkpoint.files import write_tensors
from turbodiffusion.demo.factors import CLASSES, NATURAL, Factors, directions, labels
from turbodiffusion.demo.renderer import World
from turbodiffusion.errors import CheckpointError, MissingFilesError, UserError
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.parallel.groups import rank_and_size
from turbodiffusion.training.trainer import Loss, Schedule, Trainer, step_generator, torch_generator

HIDDEN = "hidden"  # the name of the last layer before the answers
FILE = "probe.safetensors"
SHRINK = 32  # side of what it looks at over side of the last stage
BLOCKS = (1, 2, 2, 1)  # of the four stages
PLACES, PATH = 16, 128  # channels in which a frame says what is where; features of the path that they make
CALIBRATION = 1024  # fresh renders that give the features their scale

Movement = tuple[str, str]  # motion and camera, words of CLASSES

# A motion before a still camera, and the camera before which a still subject moves in the same way across the view.
_SEEN_AS = (
    *(("approach", "zoom in"), ("recede", "zoom out")),
    *((f"{go} left", "pan right") for go in ("walk", "run", "fly")),
    *((f"{go} right", "pan left") for go in ("walk", "run", "fly")),
    *(("fly up", "tilt down"), ("fly down", "tilt up")),
)
# Movements that count as one. Both at once is never drawn for the first two, but may be read.
LOOK_ALIKES: tuple[frozenset[Movement], ...] = tuple(
    frozenset({(motion, ""), ("still", camera)} | ({(motion, camera)} if camera.startswith("zoom") else set()))
    for motion, camera in _SEEN_AS
)


@dataclass(frozen=True)
class ProbeConfig:
    """classes: the questions and their answers; size and clip_frames: of the videos it was trained on (height, width).

    side, frames: of what it looks at. widths: channels of the stem and of four stages, each at half the side of the one
    before. features: width of HIDDEN. Raises ValueError where that is more than 64.
    """

    classes: tuple[tuple[str, tuple[str, ...]], ...]
    size: tuple[int, int]
    clip_frames: int
    side: int = 128
    frames: int = 9
    widths: tuple[int, ...] = (32, 64, 128, 192, 192)
    features: int = 64

    def __post_init__(self) -> None:
        if self.side % SHRINK:
            raise ValueError(f"side must be a multiple of {SHRINK}, not {self.side}")
        if self.features > 64:
            raise ValueError(
                f"a judge has at most 64 features, not {self.features}: distances need many clips for each"
            )

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(question for question, _ in self.classes)

    def answers(self, question: str) -> tuple[str, ...]:
        """The possible answers to a question."""
        return dict(self.classes)[question]


def world_classes(world: World) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The questions and those of their answers that occur in a world: its subjects, what they do, where they live."""
    motions = {f"{m} {d}".strip() for row in world.subjects for m in row.motions for d in directions(m)}
    occurring = {
        "subject": {row.name for row in world.subjects},
        "motion": motions | {"still"},  # frozen clips are
        "scene": {scene for row in world.subjects for scene in row.habitat},
    }
    return tuple(
        (question, tuple(a for a in answers if a in occurring.get(question, answers)))
        for question, answers in CLASSES.items()
    )


def probe_config(world: World) -> ProbeConfig:
    """The probe for a world's clips."""
    return ProbeConfig(world_classes(world), world.size, world.frames)


def label_indices(clips: Sequence[Factors], config: ProbeConfig) -> NDArray[np.int64]:
    """The right answers [N, questions], as indices into `config.answers`. Raises UserError for an unknown subject."""
    place = {q: {CLASSES[q].index(a): k for k, a in enumerate(answers)} for q, answers in config.classes}
    rows = []
    for clip in clips:
        right = labels(clip)
        unknown = [CLASSES[q][right[q]] for q in config.questions if right[q] not in place[q]]
        if unknown:
            raise UserError(f"the probe was trained in a world without {', '.join(unknown)}: train it with this atlas")
        rows.append([place[q][right[q]] for q in config.questions])
    return np.array(rows, np.int64).reshape(-1, len(config.questions))


def same_movement(a: Movement, b: Movement) -> bool:
    """Whether two movements count as one: equal, or look-alikes."""
    return a == b or any(a in alike and b in alike for alike in LOOK_ALIKES)


def grade(
    read_NQ: NDArray[np.int64], truth_NQ: NDArray[np.int64], config: ProbeConfig, *, strict: bool = False
) -> dict[str, NDArray[np.bool_]]:
    """Question -> which answers are right, over the clips where it counts (colour: where there is a colour to name).

    Which clips count follows from the truth alone, so the marks of two models on the same prompts can be paired.
    strict: without LOOK_ALIKES.
    """
    right = dict(zip(config.questions, (read_NQ == truth_NQ).T, strict=True))
    if not strict:
        motion, camera = (config.questions.index(q) for q in ("motion", "camera"))
        motions, cameras = config.answers("motion"), config.answers("camera")

        def movement(row: NDArray[np.int64]) -> Movement:
            return motions[row[motion]], cameras[row[camera]]

        alike = [same_movement(movement(a), movement(b)) for a, b in zip(read_NQ, truth_NQ, strict=True)]
        for question in ("motion", "camera"):
            right[question] = right[question] | np.array(alike, bool)
    named = truth_NQ[:, config.questions.index("colour")] != config.answers("colour").index(NATURAL)
    right["colour"] = right["colour"][named]
    return right


# ---- the network ----


def _shifted(x: Tensor, frames: int) -> Tensor:
    """[B F, C, H, W] with an eighth of the channels from the frame before and an eighth from the one after; zeros
    beyond the ends. In NHWC strides throughout, so that a GPU's convolutions need no copies."""
    y = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames))
    part = y.shape[-1] // 8
    before, after, same = y.split((part, part, y.shape[-1] - 2 * part), dim=-1)
    before = pad(before[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    after = pad(after[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
    return torch.cat((before, after, same), -1).flatten(0, 1).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """Two 3 x 3 convolutions around a residual, the first over shifted channels."""

    def __init__(self, width_in: int, width: int, stride: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)
        self.skip = nn.Sequential()
        if stride > 1:
            conv = nn.Conv2d(width_in, width, 1, bias=False)
            self.skip = nn.Sequential(nn.AvgPool2d(stride), conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(_shifted(x, self.frames))).relu()
        return (self.norm2(self.conv2(y)) + self.skip(x)).relu()


class Probe(nn.Module):
    """About 3 million parameters at the default widths; in eval mode its norms use the training's statistics."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        self.stem = nn.Sequential(
            nn.Conv2d(6, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        blocks = []
        for (width_in, width), count in zip(pairwise(widths), BLOCKS, strict=True):
            blocks.append(_Block(width_in, width, 2, config.frames))
            blocks += [_Block(width, width, 1, config.frames) for _ in range(count - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.places = nn.Conv2d(widths[-1], PLACES, 1)
        self.path = nn.Linear(PLACES * config.frames * (config.side // SHRINK) ** 2, PATH)
        self.hidden = nn.Linear(2 * widths[-1] + PATH, config.features)
        self.heads = nn.ModuleDict({q: nn.Linear(config.features, len(answers)) for q, answers in config.classes})
        self.register_buffer("feature_mean", torch.zeros(config.features))
        self.register_buffer("feature_std", torch.ones(config.features))

    def forward(self, view_BCFHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits of every question [B, answers] and the features of HIDDEN, of views in [-1, 1] (`look`)."""
        frames = view_BCFHW.shape[2]
        change = view_BCFHW.diff(dim=2, prepend=view_BCFHW[:, :, :1])  # what moves stands out from what does not
        x = torch.cat((view_BCFHW, change), 1).transpose(1, 2).flatten(0, 1).to(memory_format=torch.channels_last)
        x = self.blocks(self.stem(x))
        path = self.path(self.places(x).unflatten(0, (-1, frames)).flatten(1)).relu()
        x = x.unflatten(0, (-1, frames))  # [B, F, C, H, W]
        hidden = self.hidden(torch.cat((x.mean((1, 3, 4)), x.amax((1, 3, 4)), path), 1))
        return {question: head(hidden) for question, head in self.heads.items()}, hidden

    @torch.no_grad()
    def read(self, video_BCFHW: Tensor, batch: int = 256) -> tuple[NDArray[np.int64], Tensor]:
        """Answers [B, questions] and features float32 [B, features] on the CPU, of videos in [-1, 1] of any size.

        Features are scaled to mean 0 and deviation 1 over fresh renders: distances are in those deviations.
        """
        return self.read_views(preprocess(video_BCFHW, self.config), batch)

    @torch.no_grad()
    def read_views(self, view_BCFHW: Tensor, batch: int = 256) -> tuple[NDArray[np.int64], Tensor]:
        """`read` for what `look` gave."""
        device = self.feature_mean.device
        answers, features = [], []
        for piece in view_BCFHW.split(batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits, hidden = self(piece.to(device).float() / 127.5 - 1)
            answers.append(torch.stack([logits[q].argmax(1) for q in self.config.questions], 1).cpu())
            features.append(((hidden.float() - self.feature_mean) / self.feature_std).cpu())
        return torch.cat(answers).numpy(), torch.cat(features)


@torch.no_grad()
def preprocess(video_BCFHW: Tensor, config: ProbeConfig) -> Tensor:
    """What the probe sees of videos in [-1, 1]: uint8 [B, 3, frames, side, side], averaged over the pixels between."""
    clips, _, length = video_BCFHW.shape[:3]
    picks = torch.linspace(0, length - 1, config.frames, device=video_BCFHW.device).round().long()
    frames = video_BCFHW[:, :, picks].transpose(1, 2).flatten(0, 1).float()
    small = interpolate(frames, size=(config.side, config.side), mode="area")
    pixels = ((small.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.unflatten(0, (clips, config.frames)).transpose(1, 2)


# ---- training ----


@dataclass(frozen=True)
class ProbeRecipe:
    """batch: views a step on each rank. first, size: clips held at the start and at most; refresh: new ones every step.

    decoded: share of the clips that go through the VAE, where there is one. held_out: share of held-out combinations.
    """

    batch: int = 256
    first: int = 4096
    size: int = 16_384
    refresh: int = 16
    decoded: float = 0.25
    held_out: float = 0.05
    flip: float = 0.5
    freeze: float = 0.06
    blur: float = 0.4
    noise: float = 0.06  # the largest standard deviation, of a range of 2
    light: float = 0.1  # the largest change of brightness and of contrast
    seed: int = 31_337


class ProbeBank:
    """A rolling bank of views with their answers; which clips it holds at a step follows from the step alone."""

    def __init__(self, world: World, config: ProbeConfig, recipe: ProbeRecipe, vae: WanVAE | None, seed: int) -> None:
        self.world, self.config, self.recipe, self.vae, self.seed = world, config, recipe, vae, seed
        shape = (recipe.size, 3, config.frames, config.side, config.side)
        self.view = torch.zeros(shape, dtype=torch.uint8, device=world.device)
        self.answers = torch.zeros(recipe.size, len(config.questions), dtype=torch.int64, device=world.device)
        self.end = 0  # clips [end - size, end) are here

    def advance(self, step: int, chunk: int = 64) -> None:
        """Hold the clips that belong to `step`; renders only what is missing."""
        want = self.recipe.first + step * self.recipe.refresh
        self.end = max(self.end, want - self.recipe.size)
        if want - self.end > 1000:
            print(f"rendering {want - self.end} clips for the probe", flush=True)
        while self.end < want:
            last = min(want, self.end + chunk)
            clips = [self._factors(clip) for clip in range(self.end, last)]
            slots = torch.arange(self.end, last, device=self.view.device) % self.recipe.size
            self.view[slots] = preprocess(self._video(clips), self.config)
            self.answers[slots] = torch.from_numpy(label_indices(clips, self.config)).to(self.answers.device)
            self.end = last

    def _factors(self, clip: int) -> Factors:
        rng = np.random.default_rng((self.seed, clip))
        return self.world.sample_factors(rng, 1, held_out=bool(rng.random() < self.recipe.held_out))[0]

    def _video(self, clips: Sequence[Factors]) -> Tensor:
        video = self.world.render(clips)
        decoded = round(self.recipe.decoded * len(clips)) if self.vae else 0
        if self.vae is not None and decoded:
            video[:decoded] = through_vae(self.vae, video[:decoded])
        return video

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """`count` random views uint8 and their answers [count, questions]."""
        held = min(self.end, self.recipe.size)
        slots = torch.from_numpy(rng.integers(0, held, count)).to(self.view.device)
        return self.view[slots], self.answers[slots]


@torch.no_grad()
def through_vae(vae: WanVAE, video_BCFHW: Tensor, batch: int = 16) -> Tensor:
    """Videos encoded and decoded, clamped to [-1, 1]."""
    device = video_BCFHW.device.type
    made = []
    for piece in video_BCFHW.split(batch):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            made.append(vae.decode_whole(vae.encode_moments(piece)[0].float()).float().clamp(-1, 1))
    return torch.cat(made)


def mirrored(config: ProbeConfig) -> dict[str, list[int]]:
    """Question -> the answer for the mirror image of a clip, for each answer: left becomes right."""

    def swap(answer: str) -> str:
        return " ".join({"left": "right", "right": "left"}.get(word, word) for word in answer.split(" "))

    return {q: [answers.index(swap(a)) for a in answers] for q, answers in config.classes}


def augment(
    view_BCFHW: Tensor, answers_BQ: Tensor, config: ProbeConfig, recipe: ProbeRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Float views in about [-1, 1] and their answers: some mirrored, frozen, blurred, with other light and noise."""
    device, count = view_BCFHW.device, len(view_BCFHW)

    def chance(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, 1, generator=generator, device=device) < share

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, 1, generator=generator, device=device)

    x, answers = view_BCFHW.float() / 127.5 - 1, answers_BQ.clone()
    flip, freeze = chance(recipe.flip), chance(recipe.freeze)
    x = torch.where(flip, x.flip(-1), x)
    turned = mirrored(config)
    for k, question in enumerate(config.questions):
        other = torch.tensor(turned[question], device=device)[answers[:, k]]
        answers[:, k] = torch.where(flip.flatten(), other, answers[:, k])
    one = torch.randint(x.shape[2], (count,), generator=generator, device=device)
    x = torch.where(freeze, x[torch.arange(count, device=device), :, one].unsqueeze(2), x)
    for question, still in (("motion", "still"), ("camera", "")):
        k = config.questions.index(question)
        answers[:, k] = torch.where(freeze.flatten(), config.answers(question).index(still), answers[:, k])
    smooth = avg_pool2d(x.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(x)
    x = torch.lerp(x, smooth, chance(recipe.blur) * between(0, 1))
    x = x * between(1 - recipe.light, 1 + recipe.light) + between(-recipe.light, recipe.light)
    x = x + between(0, recipe.noise) * torch.randn(x.shape, generator=generator, device=device)
    return x, answers


def make_loss(probe: Probe, bank: ProbeBank, recipe: ProbeRecipe) -> Loss:
    """Cross entropy over all questions on the bank's views of step s, everything drawn from (seed, step, rank)."""
    rank, _ = rank_and_size()
    device = bank.view.device

    def loss(step: int) -> dict[str, Tensor]:
        bank.advance(step)
        rng = step_generator(recipe.seed, step, rank)
        view, answers = bank.batch(rng, recipe.batch)
        view, answers = augment(view, answers, probe.config, recipe, torch_generator(rng, device))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, _ = probe(view)
        total = torch.zeros((), device=device)
        shown = {}
        for k, question in enumerate(probe.config.questions):
            total = total + cross_entropy(logits[question].float(), answers[:, k])
            shown[question] = (logits[question].argmax(1) == answers[:, k]).float().mean()
        return {"loss": total, **shown}

    return loss


def train_probe(
    world: World,
    schedule: Schedule,
    run: Path,
    recipe: ProbeRecipe | None = None,
    *,
    vae: WanVAE | None = None,
    config: ProbeConfig | None = None,
) -> Probe:
    """Train the judge; resumes what is in `run`. Writes RUN/probe.safetensors and returns the probe, in eval mode.

    The last weights are taken, not their average: batch norm's statistics belong to them, and the learning rate has
    come to zero.
    """
    recipe, config = recipe or ProbeRecipe(), config or probe_config(world)
    torch.manual_seed(recipe.seed)
    probe = Probe(config).to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(nn.ModuleDict({"probe": probe}), schedule, run)
    trainer.resume()
    bank = ProbeBank(world, config, recipe, vae, recipe.seed + 1000 * trainer.rank)
    probe.train()
    trainer.fit(make_loss(probe, bank, recipe), prepare=bank.advance)
    probe.eval().requires_grad_(False)
    _, features = probe.read_views(bank.view[: min(bank.end, recipe.size, CALIBRATION)])
    probe.feature_mean += features.mean(0).to(world.device) * probe.feature_std
    probe.feature_std *= features.std(0).to(world.device)
    if trainer.rank == 0:
        save_probe(probe, run)
    return probe


def save_probe(probe: Probe, folder: Path) -> None:
    """Write FOLDER/probe.safetensors, its configuration in the header."""
    write_tensors(folder / FILE, probe.state_dict(), {"probe": json.dumps(asdict(probe.config))})


def load_probe(path: str | Path, device: torch.device | str = "cpu") -> Probe:
    """The probe in a run's folder or file, in eval mode. Raises MissingFilesError or CheckpointError."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise MissingFilesError(
            f"no probe at {path}: train it with `turbodiffusion train probe --folder {path.parent}`"
        )
    try:
        with safe_open(path, "pt") as file:
            config = _config_from(json.loads(file.metadata()["probe"]))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 safe_open is no mapping
        probe = Probe(config)
        probe.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a probe of this release: train it again ({error})") from None
    return probe.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def _config_from(fields: Mapping) -> ProbeConfig:
    classes = tuple((question, tuple(answers)) for question, answers in fields["classes"])
    tuples = {"classes": classes, "size": tuple(fields["size"]), "widths": tuple(fields["widths"])}
    return ProbeConfig(**{**fields, **tuples})
