"""Text or an image in, a video out: the one road that every front end takes.

`Pipeline.load` checks requests, the machine and the files, in this order, before anything heavy; `generate` encodes the
prompt (and image), samples a latent, and decodes it while a second thread encodes the mp4.
"""

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbodiffusion import __version__
from turbodiffusion.checkpoint.load import load_transformer, load_vae
from turbodiffusion.config import REFERENCE, SPARSE_ATTENTION, Kernels
from turbodiffusion.demo.coverage import describe_gap
from turbodiffusion.demo.subjects import named
from turbodiffusion.errors import MachineError, OutputError, RequestError
from turbodiffusion.inference import model_source as source
from turbodiffusion.inference.auto import (
    Kinds,
    choose_device,
    choose_dtype,
    choose_kernels,
    choose_linears,
    eight_bits,
    fitting,
)
from turbodiffusion.inference.prompt_encoder import Prompts
from turbodiffusion.inference.result import Result
from turbodiffusion.inference.sampling import Denoise, State, sample_flow, sample_rcm
from turbodiffusion.media import video
from turbodiffusion.media.frames import copy_to_host, new_frames
from turbodiffusion.media.image import adaptive_size, fit, load_image
from turbodiffusion.memory import plan as memory
from turbodiffusion.models.cuda_graphs import CudaGraphCache, Tensors
from turbodiffusion.models.cuda_graphs import Result as Returned
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import Context, WanTransformer
from turbodiffusion.presets import ModelPreset
from turbodiffusion.request import OnProgress, Progress, Request, made_size
from turbodiffusion.schedules import flow_times, rcm_times

log = logging.getLogger(__name__)

LAUNCHED = 4  # forwards before a graph is made of one: a distilled video's, which may be all that a process is for


class Pipeline:
    """A loaded model. One video at a time: a second thread needs a second pipeline.

    `kinds` are those of requests that name none; `memory_plan`: how the parts share the device, for people.
    """

    def __init__(
        self,
        model: str,
        preset: ModelPreset,
        paths: Mapping[str, Path],
        *,
        device: torch.device,
        dtype: torch.dtype,
        kinds: Kinds,
        kernels: Kernels,
        device_chosen: bool,
        offload_asked: str,
        offload_text: bool,
        max_memory: float | None,
        memory_plan: str,
        stages: "_Stages",
    ) -> None:
        """Read the weights at `paths`, by part; `load` finds them and decides the rest."""
        self.model, self.preset, self.device, self.dtype, self.kinds = model, preset, device, dtype, kinds
        self.kernels = kernels
        self.memory_plan, self._max_memory = memory_plan, max_memory
        self._offload_asked, self._offload_text = offload_asked, offload_text
        self._paths, self._device_chosen, self._built = paths, device_chosen, kinds
        self._graphs, self._replayed, self._graphs_fit = CudaGraphCache(), False, True
        self._graphs_of = (0, 0, 0)  # frames, height and width
        with stages.run("load", 2 + preset.experts) as step:
            words, weights = paths["tokenizer"], paths["text"]
            self._prompts = Prompts(preset.text, words, weights, device=device, dtype=dtype, offload=offload_text)
            step()
            self._vae = WanVAE(preset.vae, device="meta", dtype=dtype, impl=kernels.vae)
            load_vae(self._vae, paths["vae"], device=device)
            self._vae.eval().requires_grad_(False)
            step()
            self._experts = self._read_experts(kinds, step)
        self._load_seconds = stages.seconds["load"]
        log.info(
            "%s on %s in %s: attention %s, sla_topk %g, linears %s; kernels %s",
            model,
            device,
            str(dtype).removeprefix("torch."),
            kinds.attention_type,
            kinds.sla_topk,
            kinds.quant_linear,
            ", ".join(f"{group} {impl}" for group, impl in asdict(kernels).items()),
        )
        log.info("memory: %s", memory_plan)

    @classmethod
    def load(
        cls,
        model: str = "demo",
        *,
        device: str = "auto",
        dtype: str = "auto",
        attention_type: str = "auto",
        sla_topk: float | None = None,
        quant_linear: str = "auto",
        kernels: str = "auto",
        offload_text: str = "auto",
        max_memory: float | None = None,
        requests: Sequence[Request] = (),
        on_progress: OnProgress | None = None,
    ) -> "Pipeline":
        """Load a model by name, folder or file.

        device: "auto", "cpu", "cuda", "cuda:1". dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or either name. The
        kinds are those of requests that leave them at "auto". kernels: "reference", "triton", or "auto" for the fastest
        that run here. offload_text: "on" lets the text encoder rest in CPU memory and pass through the GPU for a new
        prompt, "off" keeps it there, "auto" does where everything fits. max_memory: GiB of the GPU to plan for, where
        it is shared. requests: what is going to be asked for, checked before anything is fetched or loaded. Raises a
        UserError, one line: RequestError, then MachineError, then MissingFilesError or CheckpointError.
        """
        origin = source.identify(model)
        preset = origin.preset
        defaults = Request(
            "a video",
            image="image" if preset.task == "i2v" else None,
            attention_type=attention_type,
            sla_topk=sla_topk,
            quant_linear=quant_linear,
        )
        wanted = defaults.resolve(preset)
        for request in requests:
            request.resolve(preset)
        for image in {request.image for request in requests}:
            if image is not None:
                load_image(image)  # what is wrong with it is told before what the machine lacks
        place = choose_device(device)
        number = choose_dtype(dtype, place)
        here = memory.machine(place, max_memory)
        topk = preset.transformer.sla_topk if sla_topk is None else sla_topk
        with_kernels = choose_kernels(kernels, place, number)
        quant_linear = choose_linears(wanted.quant_linear, preset.transformer, here, with_kernels)
        kinds = Kinds(wanted.attention_type, topk, quant_linear)
        asked = [_as_loaded(request, kinds, with_kernels).resolve(preset) for request in requests or [defaults]]
        jobs = [_job(model, preset, request, request.size, number, place, with_kernels) for request in asked]
        offload = any(memory.plan(job, here, offload_text=offload_text).offload_text for job in jobs)
        plans = [memory.plan(job, here, offload_text="on" if offload else "off") for job in jobs]
        largest = max(zip(jobs, plans, strict=True), key=lambda pair: memory.needs(*pair).total)
        for job in jobs:
            memory.wait(job, here, chosen=device != "auto")
        stages = _Stages(on_progress, place)
        paths = source.files(
            origin,
            resolution=asked[0].resolution,
            # A row format that was asked for by name is made from the unrounded weights.
            quantized=quant_linear != "off" and wanted.quant_linear in ("auto", "on", "int8_block"),
            on_fetch=lambda file, done, total: stages.report("download", done >> 20, total >> 20),
        )
        with _current(place):  # pinned memory belongs to the current GPU
            return cls(
                model,
                preset,
                paths,
                device=place,
                dtype=number,
                kinds=kinds,
                kernels=with_kernels,
                device_chosen=device != "auto",
                offload_asked=offload_text,
                offload_text=offload,
                max_memory=max_memory,
                memory_plan=memory.describe(*largest, here),
                stages=stages,
            )

    def generate(
        self,
        request: Request,
        on_progress: OnProgress | None = None,
        on_notice: Callable[[str], None] | None = None,
    ) -> Result:
        """Make the video of a request. The same resolved request gives the same bytes on the same device.

        Kinds that differ from the loaded ones rebuild the transformer. `on_progress` may raise to cancel: the exception
        comes through and the pipeline stays usable. `on_notice` gets each of the result's notices before the work
        begins. Raises RequestError, MachineError, or OutputError for a result that
        is not a video.
        """
        try:
            with _current(self.device):  # Triton launches there, wherever its tensors are
                return self._generate(request, _Stages(on_progress, self.device), on_notice)
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors
            self._graphs.clear()
            torch.cuda.empty_cache()
            if not self._replayed:
                raise MachineError(
                    f"{self.device} ran out of memory, of which another program may hold some: try a smaller "
                    "resolution, fewer frames, --quant-linear on, or less for --max-memory"
                ) from error
        log.warning("there is less memory than planned: again, without CUDA graphs from now on")
        self._graphs_fit = False
        return self.generate(request, on_progress)

    def _generate(self, request: Request, stages: "_Stages", on_notice: Callable[[str], None] | None) -> Result:
        preset = self.preset
        if request.model is not None and request.model.lower() not in (self.model.lower(), preset.name.lower()):
            raise RequestError(f"this pipeline holds {self.model}; Pipeline.load({request.model!r}) holds the other")
        if request.attention_type == "auto":
            request = replace(request, attention_type=self.kinds.attention_type)
        notices = list(request.notices(preset))
        resolved = _as_loaded(request, self.kinds, self.kernels).resolve(preset)
        kinds = Kinds(resolved.attention_type, resolved.sla_topk or self.kinds.sla_topk, resolved.quant_linear)
        image = None if resolved.image is None else load_image(resolved.image)
        width, height = resolved.size
        if image is not None and resolved.adaptive_resolution:
            width, height = adaptive_size(image.shape[1], image.shape[0], width * height)
        job = _job(self.model, preset, resolved, (width, height), self.dtype, self.device, self.kernels)
        notices += filter(None, [self._untrained(kinds), *self._plan(job)])
        if preset.subjects:
            notices += filter(None, [describe_gap(resolved.prompt, named(preset.subjects))])
            if resolved.num_frames != preset.num_frames:
                notices.append(f"{preset.name} has seen videos of {preset.num_frames} frames alone: others look worse")
        if on_notice is not None:
            for notice in notices:
                on_notice(notice)

        stages.seconds["load"], self._load_seconds = self._load_seconds, 0.0
        self._rebuild(kinds, stages)
        with torch.inference_mode():
            states = self._encode_text(resolved, stages)
            condition = None if image is None else self._encode_image(image, job, stages)
            self._make_room()
            latent = self._sample(resolved, job, states, condition, stages)
            self._make_room()
            encoder = video.Encoder(width, height, preset.fps, {"request": resolved.to_json(), "version": __version__})
            frames, mp4 = self._decode(latent, (width, height), encoder, stages)
        name = video.output_name(preset.task, resolved.seed, preset.file_name, datetime.now())
        return Result(resolved, frames, mp4, name, stages.seconds, tuple(notices))

    # ---- weights ----

    def _read_experts(self, kinds: Kinds, step: Callable[[], None]) -> tuple[WanTransformer, ...]:
        trained = self.preset.transformer.attention_type in SPARSE_ATTENTION
        dense = kinds.attention_type not in SPARSE_ATTENTION
        # A checkpoint with SLA's projection is read into a network that has one, even where it is going to run dense.
        stored = replace(kinds, attention_type="sla") if trained and dense else kinds
        experts = []
        for part in ("transformer", "transformer_low")[: self.preset.experts]:
            expert = self._empty_expert(stored)
            missing = () if trained else ("proj_l",)
            load_transformer(expert, self._paths[part], part=part, device=self.device, allow_missing=missing)
            experts.append(self._over(expert, kinds))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what the file's tensors took before they were rounded and joined
            step()
        return tuple(experts)

    def _empty_expert(self, kinds: Kinds) -> WanTransformer:
        config = replace(
            self.preset.transformer,
            attention_type=kinds.attention_type,
            sla_topk=kinds.sla_topk,
            quant_linear=kinds.quant_linear,
        )
        kernels = fitting(self.kernels, config, self.device)
        return WanTransformer(replace(config, kernels=kernels), device="meta", dtype=self.dtype)

    def _rebuild(self, kinds: Kinds, stages: "_Stages") -> None:
        """Make the experts compute in `kinds`; weights are read again only where they differ."""
        if kinds == self._built and self._experts:
            return
        new_tensors = kinds.quant_linear != self._built.quant_linear or (
            kinds.attention_type in SPARSE_ATTENTION and self._built.attention_type not in SPARSE_ATTENTION
        )
        old, self._experts = self._experts, ()
        self._graphs.clear()
        with stages.run("load", self.preset.experts) as step:
            if old and not new_tensors:
                self._experts = tuple(self._over(expert, kinds) for expert in old)
            else:
                del old  # first: two copies may not fit
                self._experts = self._read_experts(kinds, step)
        self._built = kinds

    def _over(self, expert: WanTransformer, kinds: Kinds) -> WanTransformer:
        """A network of these kinds over an expert's own tensors; one that runs dense leaves SLA's projection out."""
        new = self._empty_expert(kinds)
        names = new.state_dict().keys()
        new.load_state_dict({name: t for name, t in expert.state_dict().items() if name in names}, assign=True)
        new.eval().requires_grad_(False)
        return new if self.kernels == REFERENCE else new.prepare()

    def _untrained(self, kinds: Kinds) -> str | None:
        if kinds.attention_type in SPARSE_ATTENTION and self.preset.transformer.attention_type not in SPARSE_ATTENTION:
            return f"attention {kinds.attention_type!r}: {self.model} was not fine-tuned for it, so its pictures suffer"
        return None

    def _plan(self, job: memory.Job) -> Iterator[str | None]:
        """Give the VAE its chunk and refuse what does not fit; yields notices."""
        loaded = replace(job, transformer=replace(job.transformer, quant_linear=self._built.quant_linear))
        held = memory.needs(loaded, memory.Plan(self._offload_text))
        if not self._experts:
            held = replace(held, transformer=0)
        here = memory.machine(self.device, self._max_memory)
        plan = memory.plan(job, here, offload_text="on" if self._offload_text else "off", held=held)
        alone = memory.plan(job, replace(here, free=here.total), offload_text=self._offload_asked, held=held)
        self._vae.latents_per_chunk = plan.latents_per_chunk
        size = (job.num_frames, job.height, job.width)
        self._replayed = plan.graphs and self._graphs_fit
        if size != self._graphs_of or not self._replayed:  # else they would keep the memory of two sizes
            self._graphs.clear()
        self._graphs_of = size
        yield memory.wait(job, here, chosen=self._device_chosen)
        if plan.latents_per_chunk != alone.latents_per_chunk:
            yield (
                f"latent frames that the VAE decodes at once: {plan.latents_per_chunk}; loaded for this video alone on "
                f"an empty {here.name} it would be {alone.latents_per_chunk}, so the pictures' last bits may differ"
            )

    def _make_room(self) -> None:
        """Between two stages, where memory is short: give back what PyTorch keeps of the last one's.

        The next would cut it into pieces that fit nothing else: held to 8 GiB, an H100 kept 7.4 for tensors of 5.8, and
        an H200 had no room for its second video.
        """
        if self.device.type == "cuda" and not self._replayed:
            torch.cuda.empty_cache()

    # ---- stages ----

    def _encode_text(self, request: Request, stages: "_Stages") -> list[Tensor]:
        """States [1, S, E] of the prompt and, under guidance, of the negative prompt."""
        prompts = [request.prompt]
        if request.guidance is not None and request.guidance != 1:
            prompts.append(request.negative_prompt or "")
        with stages.run("text", len(prompts)) as step:
            states = []
            for prompt in prompts:
                states.append(self._prompts.encode(prompt))
                step()
        return states

    def _encode_image(self, image: NDArray[np.uint8], job: memory.Job, stages: "_Stages") -> Tensor:
        """The condition [1, 4 + z_dim, T, H/8, W/8]: mask of the given frame, latent of the image and then grey."""
        with stages.run("image", 1) as step:
            first_HWC = torch.from_numpy(fit(image, job.width, job.height)).to(self.device)
            video_BCFHW = torch.zeros(1, 3, job.num_frames, job.height, job.width, device=self.device)
            video_BCFHW[0, :, 0] = first_HWC.permute(2, 0, 1) / 127.5 - 1
            latent_BCTHW = self._vae.encode(video_BCFHW)
            mask_BCTHW = torch.zeros_like(latent_BCTHW[:, :4])
            mask_BCTHW[:, :, 0] = 1
            step()
        return torch.cat((mask_BCTHW, latent_BCTHW), dim=1)

    def _sample(
        self, request: Request, job: memory.Job, states: list[Tensor], condition: Tensor | None, stages: "_Stages"
    ) -> Tensor:
        """The finished latent [1, z_dim, T, H/8, W/8]."""
        vae = self.preset.vae
        length = (job.num_frames - 1) // vae.time_factor + 1
        shape = (1, vae.z_dim, length, job.height // vae.space_factor, job.width // vae.space_factor)
        denoise = self._denoiser(request, states, condition)
        assert request.num_steps is not None
        with stages.run("diffusion", request.num_steps) as step:

            def on_step(state: State) -> None:
                if not torch.isfinite(state.x).all():
                    raise OutputError(
                        f"the network gave values that are not finite at step {state.step} of {request.num_steps}: the "
                        "weights are damaged, or too coarse in this form (try --quant-linear off)"
                    )
                step()

            if self.preset.sampler == "rcm":
                assert request.sigma_max is not None
                times = rcm_times(request.num_steps, request.sigma_max)
                return sample_rcm(
                    denoise, shape, times, request.seed, ode=request.ode, device=self.device, on_step=on_step
                )
            assert request.shift is not None
            times = flow_times(request.num_steps, request.shift)
            return sample_flow(denoise, shape, times, request.seed, device=self.device, on_step=on_step)

    def _denoiser(self, request: Request, states: list[Tensor], condition: Tensor | None) -> Denoise:
        """The velocity, by the expert for its time, under guidance where there are states of a negative prompt."""
        contexts: dict[int, list[Context]] = {}

        def denoise(x_BCTHW: Tensor, t: float) -> Tensor:
            k = 1 if request.boundary is not None and t < request.boundary else 0
            expert = self._experts[k]
            if k not in contexts:
                contexts.clear()  # the high-noise expert's are not needed again
                contexts[k] = [self._call(("context", k), expert.encode_context, each) for each in states]
            x_BCTHW = x_BCTHW.float()
            if condition is not None:
                x_BCTHW = torch.cat((x_BCTHW, condition), dim=1)
            t_B = torch.full((1,), 1000 * t, dtype=torch.float32, device=self.device)
            velocity, *unwanted = (
                self._call(("velocity", k), expert, x_BCTHW, t_B, context, after=LAUNCHED) for context in contexts[k]
            )
            if unwanted:
                assert request.guidance is not None
                velocity = unwanted[0] + request.guidance * (velocity - unwanted[0])
            return velocity

        return denoise

    def _call(
        self, name: tuple[str, int], function: Callable[..., Returned], *inputs: Tensors, after: int = 1
    ) -> Returned:
        """`function(*inputs)`, replayed where the plan has graphs; `name` tells the functions of `_graphs` apart."""
        return self._graphs(name, function, *inputs, warmup_calls=after) if self._replayed else function(*inputs)

    def _decode(
        self, latent_BCTHW: Tensor, size: tuple[int, int], encoder: video.Encoder, stages: "_Stages"
    ) -> tuple[NDArray[np.uint8], bytes]:
        """Frames [F, H, W, 3] and the mp4: one thread decodes chunks, another encodes those before."""
        count = (latent_BCTHW.shape[2] - 1) * self.preset.vae.time_factor + 1
        frames = new_frames(count, size[1], size[0], self.device)
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
            try:
                with stages.run("decode", latent_BCTHW.shape[2], wait=False) as step:
                    encoding = []
                    for planes in copy_to_host(self._vae.decode_chunks(latent_BCTHW), frames):
                        encoding.append(pool.submit(encoder.add, planes))
                        if encoding[0].done():  # a failure is told now, not after all frames
                            encoding.pop(0).result()
                        step()
                with stages.run("encode", 1) as step:
                    finished = pool.submit(encoder.finish)
                    # Kept in ordinary memory: the next video takes the pinned one.
                    kept = frames.numpy().copy() if frames.is_pinned() else frames.numpy()
                    for chunk in encoding:
                        chunk.result()
                    mp4 = finished.result()
                    step()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return kept, mp4


class _Stages:
    """Times the stages of one video and reports their steps."""

    def __init__(self, on_progress: OnProgress | None, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress, self._device = on_progress, device

    def report(self, stage: str, step: int, total: int, seconds_left: float | None = None) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(stage, step, total, seconds_left))

    @contextmanager
    def run(self, stage: str, total: int, *, wait: bool = True) -> Iterator[Callable[[], None]]:
        """Time a stage; call what it yields after each of its steps. wait: a step is done when the GPU has done it."""
        start, done = time.perf_counter(), 0

        def step() -> None:
            nonlocal done
            done += 1
            if wait:
                self._synchronize()
            self.report(stage, done, total, (time.perf_counter() - start) / done * (total - done))

        self.report(stage, 0, total)
        yield step
        self._synchronize()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def _synchronize(self) -> None:
        """Wait for the GPU, whose work is queued: else a stage would pay for the one before."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _as_loaded(request: Request, kinds: Kinds, kernels: Kernels) -> Request:
    """The request with the pipeline's kinds where it names none."""
    quant_linear = {"auto": kinds.quant_linear, "on": eight_bits(kernels)}.get(request.quant_linear)
    return replace(
        request,
        attention_type=kinds.attention_type if request.attention_type == "auto" else request.attention_type,
        sla_topk=kinds.sla_topk if request.sla_topk is None else request.sla_topk,
        quant_linear=quant_linear or request.quant_linear,
    )


def _job(
    model: str,
    preset: ModelPreset,
    request: Request,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    kernels: Kernels,
) -> memory.Job:
    """A resolved request as memory counts it."""
    width, height = made_size(*size)
    assert request.num_frames is not None and request.num_steps is not None
    return memory.Job(
        model=model,
        transformer=replace(
            preset.transformer,
            attention_type=request.attention_type,
            sla_topk=request.sla_topk or preset.transformer.sla_topk,
            quant_linear=request.quant_linear,
            kernels=kernels,
        ),
        vae=preset.vae,
        text=preset.text,
        experts=preset.experts,
        width=width,
        height=height,
        num_frames=request.num_frames,
        num_steps=request.num_steps,
        guided=request.guidance is not None and request.guidance != 1,
        dtype=dtype,
        device=device.type,
    )
