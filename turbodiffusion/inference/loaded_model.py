"""A model in memory: its weights and all that belongs to them, for one video at a time."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.checkpoint.load import load_transformer, load_vae
from turbodiffusion.config import REFERENCE, SPARSE_ATTENTION, Kernels
from turbodiffusion.errors import telling_memory
from turbodiffusion.inference import model_source
from turbodiffusion.inference.auto import (
    DTYPES,
    ComputeConfig,
    choose_device,
    choose_dtype,
    choose_kernels,
    choose_linears,
    fill_compute,
    memory_job,
    supported_kernels,
)
from turbodiffusion.inference.check_request import as_requests, check_request
from turbodiffusion.inference.device import device_info
from turbodiffusion.inference.load_options import LoadOptions
from turbodiffusion.inference.prompt_encoder import PromptEncoder
from turbodiffusion.inference.sampling import PredictVelocity, guided_velocity
from turbodiffusion.inference.stage_timer import StageTimer, current_device
from turbodiffusion.memory import plan as memory
from turbodiffusion.models.cuda_graphs import CudaGraphCache
from turbodiffusion.models.text import TextEncoder, Tokenizer
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.presets import ModelPreset
from turbodiffusion.request import OnProgress, Request
from turbodiffusion.texts import Text, text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """What `load` decides before it reads a weight: where a model computes, how, and how its parts share the device."""

    device: torch.device
    dtype: str
    kernels: Kernels
    compute: ComputeConfig
    offload_text: bool = False
    memory_plan: Text | None = None
    fuse: bool = True  # q, k and v as one product where kernels run; a network whose derivative is taken must not


class LoadedModel:
    """Experts, VAE, text encoder, CUDA graphs and memory plan of one model. One video at a time: see `lock`.

    `compute` is what requests that name nothing get; `reconfigure` changes what the experts compute now.
    """

    def __init__(
        self,
        preset: ModelPreset,
        experts: Sequence[WanTransformer],
        vae: WanVAE,
        prompt_encoder: PromptEncoder,
        placement: Placement,
        options: LoadOptions | None = None,
        paths: Mapping[str, Path] | None = None,
    ) -> None:
        """Hold networks that are in memory already. paths: of their files, by part, for `reconfigure`."""
        self.preset, self.vae, self.prompt_encoder = preset, vae, prompt_encoder
        self.options, self.placement = options or LoadOptions(preset.name), placement
        self.device, self.dtype, self.kernels = placement.device, placement.dtype, placement.kernels
        self.compute, self.memory_plan = placement.compute, placement.memory_plan
        self.lock = threading.Lock()  # held by whoever makes a video or reconfigures
        self.load_seconds = 0.0
        self._experts, self._current = tuple(experts), placement.compute
        self._paths = dict(paths or {})
        self._graphs, self.use_graphs, self._graphs_fit = CudaGraphCache(), False, True
        self._graphs_size = (0, 0, 0)  # frames, height and width

    @classmethod
    def of_networks(
        cls, preset: ModelPreset, transformer: WanTransformer, vae: WanVAE, encoder: TextEncoder, tokenizer: Tokenizer
    ) -> "LoadedModel":
        """Hold networks of one expert that a training has in memory, as they are."""
        device, config = transformer.head.head.weight.device, transformer.config
        compute = ComputeConfig(config.attention_type, config.sla_topk, config.quant_linear)
        dtype = next(name for name, each in DTYPES.items() if each == transformer.dtype)
        placement = Placement(device, dtype, config.kernels, compute)
        return cls(preset, (transformer,), vae, PromptEncoder(encoder, tokenizer, device), placement)

    def with_network(self, preset: ModelPreset, transformer: WanTransformer) -> "LoadedModel":
        """Return a model of another transformer beside this one's text encoder and VAE."""
        encoder = self.prompt_encoder
        return self.of_networks(preset, transformer, self.vae, encoder.encoder, encoder.tokenizer)

    @property
    def name(self) -> str:
        """The name, folder or file that was asked for."""
        return self.options.model

    @property
    def transformer(self) -> WanTransformer:
        """The expert, or of two the high-noise one."""
        return self._experts[0]

    # ---- loading ----

    @classmethod
    def load(
        cls, options: LoadOptions, *, requests: Sequence[Request] = (), on_progress: OnProgress | None = None
    ) -> "LoadedModel":
        """Read a model by name, folder or file.

        requests: what is going to be asked for, checked before anything is fetched or loaded. Raises a UserError, one
        line: RequestError, then MachineError, then MissingFilesError or CheckpointError.
        """
        # 1. what the name means, and whether the requests can be made with it
        source = model_source.resolve_model(
            options.model, vae=options.vae, text_encoder=options.text_encoder, tokenizer=options.tokenizer
        )
        preset = source.preset
        defaults = Request(
            "a video",
            image="image" if preset.task == "i2v" else None,
            attention_type=options.attention_type,
            sla_topk=options.sla_topk,
            quant_linear=options.quant_linear,
        )
        wanted = defaults.resolve(preset)
        requests = as_requests(requests)
        for request in requests:
            check_request(request, preset)  # what is wrong with it is told before what the machine lacks
        # 2. where and how it computes, and whether that fits
        placement, resolution = _place(options, preset, wanted, requests or [defaults])
        # 3. the files; a per-token format that was asked for by name is made from the unrounded weights
        timer = StageTimer(on_progress, placement.device)
        quantized = placement.compute.quant_linear != "off" and wanted.quant_linear in ("auto", "on", "int8_block")
        paths = model_source.fetch_files(
            source,
            resolution=resolution,
            quantized=quantized,
            on_fetch=lambda file, done, total: timer.report("download", done >> 20, total >> 20),
        )
        if "tokenizer" not in source.parts:
            model_source.check_vocabulary(preset, paths)
        # 4. the weights
        with current_device(placement.device), telling_memory():
            model = cls.read(preset, placement, options, paths, timer)
        model.load_seconds = timer.seconds["load"]
        _log(model)
        return model

    @classmethod
    def read(
        cls,
        preset: ModelPreset,
        placement: Placement,
        options: LoadOptions,
        paths: Mapping[str, Path],
        timer: StageTimer,
    ) -> "LoadedModel":
        """Read the files of each part, whose places `load` decides. Raises CheckpointError."""
        device, dtype = placement.device, DTYPES[placement.dtype]
        with timer.run("load", 2 + preset.experts) as step:
            tokenizer, weights = paths["tokenizer"], paths["text"]
            encoder = PromptEncoder.load(
                preset.text, tokenizer, weights, device=device, dtype=dtype, offload=placement.offload_text
            )
            step()
            vae = WanVAE(preset.vae, device="meta", dtype=dtype, impl=placement.kernels.vae)
            load_vae(vae, paths["vae"], device=device)
            vae.eval().requires_grad_(False)
            step()
            model = cls(preset, (), vae, encoder, placement, options, paths)
            model._experts = model._read_experts(placement.compute, step)
        return model

    # ---- what the experts compute ----

    def fill(self, request: Request) -> Request:
        """Return a request with every field set for this model: checked, with its seed, attention and linears."""
        return fill_compute(request, self.compute, self.kernels).resolve(self.preset)

    def compute_for(self, filled: Request) -> ComputeConfig:
        """Return what the experts must compute for a filled request; a server compares it with `compute`."""
        return ComputeConfig(filled.attention_type, filled.sla_topk or self.compute.sla_topk, filled.quant_linear)

    def reconfigure(self, compute: ComputeConfig, timer: StageTimer | None = None) -> None:
        """Make the experts compute so; weights are read again only where they differ. The caller holds `lock`."""
        if compute == self._current and self._experts:
            return
        new_tensors = compute.quant_linear != self._current.quant_linear or (
            compute.sparse and not self._current.sparse
        )
        old, self._experts = self._experts, ()
        self._graphs.clear()
        timer = timer or StageTimer(None, self.device)
        with timer.run("load", self.preset.experts) as step:
            if old and not new_tensors:
                self._experts = tuple(self._with_compute(expert, compute) for expert in old)
            else:
                del old  # first: two copies may not fit
                self._experts = self._read_experts(compute, step)
        self._current = compute

    def _read_experts(self, compute: ComputeConfig, step: Callable[[], None]) -> tuple[WanTransformer, ...]:
        trained_sparse = self.preset.transformer.attention_type in SPARSE_ATTENTION
        # A checkpoint with SLA's projection is read into a network that has one, even where it is going to run dense.
        stored = replace(compute, attention_type="sla") if trained_sparse and not compute.sparse else compute
        experts = []
        for part in ("transformer", "transformer_low")[: self.preset.experts]:
            expert = self._empty_expert(stored)
            missing = () if trained_sparse else ("proj_l",)
            load_transformer(expert, self._paths[part], part=part, device=self.device, allow_missing=missing)
            experts.append(self._with_compute(expert, compute))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what the file's tensors took before they were rounded and fused
            step()
        return tuple(experts)

    def _empty_expert(self, compute: ComputeConfig) -> WanTransformer:
        config = replace(self.preset.transformer, **asdict(compute))
        kernels = supported_kernels(self.kernels, config, self.device)
        return WanTransformer(replace(config, kernels=kernels), device="meta", dtype=DTYPES[self.dtype])

    def _with_compute(self, expert: WanTransformer, compute: ComputeConfig) -> WanTransformer:
        """A network that computes so over an expert's own tensors; a dense one leaves SLA's projection out."""
        new = self._empty_expert(compute)
        names = new.state_dict().keys()
        new.load_state_dict({name: t for name, t in expert.state_dict().items() if name in names}, assign=True)
        new.eval().requires_grad_(False)
        return new.prepare() if self.placement.fuse and self.kernels != REFERENCE else new

    # ---- the memory plan of one video ----

    def apply_plan(self, job: memory.Job) -> Iterator[Text]:
        """Give the VAE its chunk and say whether forwards are replayed. Yields notices; MachineError for no room."""
        now = replace(job, transformer=replace(job.transformer, quant_linear=self._current.quant_linear))
        loaded = memory.estimate(now, memory.Plan(self.placement.offload_text))
        if not self._experts:
            loaded = replace(loaded, transformer=0)
        device = device_info(self.device, self.options.max_memory)
        plan = memory.plan(job, device, offload_text="on" if self.placement.offload_text else "off", loaded=loaded)
        empty = replace(device, free=device.total)
        alone = memory.plan(job, empty, offload_text=self.options.offload_text, loaded=loaded)
        self.vae.latents_per_chunk = plan.latents_per_chunk
        size = (job.num_frames, job.height, job.width)
        self.use_graphs = plan.cuda_graphs and self._graphs_fit
        if size != self._graphs_size or not self.use_graphs:  # else they would keep the memory of two sizes
            self._graphs.clear()
        self._graphs_size = size
        slow = memory.check_cpu_time(job, device, chosen=self.options.device != "auto")
        if slow is not None:
            yield slow
        if plan.latents_per_chunk != alone.latents_per_chunk:
            yield text(
                "notice.smaller_chunk",
                chunk=plan.latents_per_chunk,
                device=memory.device_name(device),
                alone=alone.latents_per_chunk,
            )

    def job(self, filled: Request, size: tuple[int, int]) -> memory.Job:
        """Return a filled request of that width and height as the memory plan counts it."""
        how: dict[str, Any] = {"dtype": self.dtype, "device": self.device.type, "kernels": self.kernels}
        return memory_job(self.name, self.preset, filled, size, **how)

    def free_cache(self) -> None:
        """Between two stages, where memory is short: give back what PyTorch keeps of the last one's.

        The next would cut it into pieces that fit nothing else: held to 8 GiB, an H100 kept 7.4 for tensors of 5.8, and
        an H200 had no room for its second video.
        """
        if self.device.type == "cuda" and not self.use_graphs:
            torch.cuda.empty_cache()

    def drop_graphs(self) -> bool:
        """After an out-of-memory error: free the graphs. Returns whether they were in use and will be no more."""
        self._graphs.clear()
        torch.cuda.empty_cache()
        used, self._graphs_fit = self.use_graphs, self._graphs_fit and not self.use_graphs
        return used

    def predict_velocity(
        self,
        prompt_embeds: Sequence[Tensor],
        *,
        guidance: float | None = None,
        guidance_low: float | None = None,
        boundary: float | None = None,
        condition: Tensor | None = None,
    ) -> PredictVelocity:
        """Return `guided_velocity` of the experts as they compute now, replayed where the plan has CUDA graphs."""
        return guided_velocity(
            self._experts,
            prompt_embeds,
            guidance=guidance,
            guidance_low=guidance_low,
            boundary=boundary,
            condition=condition,
            graphs=self._graphs if self.use_graphs else None,
        )


def _log(model: LoadedModel) -> None:
    log.info(
        "%s on %s in %s: attention %s, sla_topk %g, linears %s; kernels %s",
        model.name,
        model.device,
        model.dtype,
        model.compute.attention_type,
        model.compute.sla_topk,
        model.compute.quant_linear,
        ", ".join(f"{group} {impl}" for group, impl in asdict(model.kernels).items()),
    )
    log.info("memory: %s", model.memory_plan)


def _place(
    options: LoadOptions, preset: ModelPreset, wanted: Request, requests: Sequence[Request]
) -> tuple[Placement, str | None]:
    """Where and how a model computes, by the largest of the requests; and the resolution of the first."""
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    info = device_info(device, options.max_memory)
    kernels = choose_kernels(options.kernels, device, dtype)
    topk = preset.transformer.sla_topk if options.sla_topk is None else options.sla_topk
    linears = choose_linears(wanted.quant_linear, preset.transformer, info, kernels)
    compute = ComputeConfig(wanted.attention_type, topk, linears)

    filled = [fill_compute(request, compute, kernels).resolve(preset) for request in requests]
    jobs = [
        memory_job(options.model, preset, each, each.size, dtype=dtype, device=device.type, kernels=kernels)
        for each in filled
    ]
    offload = any(memory.plan(job, info, offload_text=options.offload_text).offload_text for job in jobs)
    plans = [memory.plan(job, info, offload_text="on" if offload else "off") for job in jobs]
    largest = max(zip(jobs, plans, strict=True), key=lambda pair: memory.estimate(*pair).total)
    for job in jobs:
        memory.check_cpu_time(job, info, chosen=options.device != "auto")
    described = memory.describe(*largest, info)
    return Placement(device, dtype, kernels, compute, offload, described), filled[0].resolution
