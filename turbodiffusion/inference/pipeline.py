"""Text or an image in, a video out: the one path that every front end takes.

`Pipeline.load` checks requests, the device and the files, in this order, before anything heavy; `generate` encodes the
prompt (and image), samples a latent, and decodes it while a second thread encodes the mp4.
"""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbodiffusion import __version__
from turbodiffusion.config import SPARSE_ATTENTION
from turbodiffusion.demo.coverage import describe_gap
from turbodiffusion.demo.subjects import named
from turbodiffusion.errors import MachineError, OutputError, RequestError, telling_memory
from turbodiffusion.inference.auto import ComputeConfig
from turbodiffusion.inference.check_request import as_request, video_size
from turbodiffusion.inference.load_options import LoadOptions
from turbodiffusion.inference.loaded_model import LoadedModel
from turbodiffusion.inference.result import Result
from turbodiffusion.inference.sampling import PredictVelocity, State, sample_flow, sample_rcm
from turbodiffusion.inference.stage_timer import StageTimer, current_device
from turbodiffusion.media import video
from turbodiffusion.media.frames import copy_to_host, new_frames
from turbodiffusion.media.image import fit, load_image, share_seen
from turbodiffusion.memory.plan import Job
from turbodiffusion.request import OnProgress, Request
from turbodiffusion.schedules import flow_times, rcm_times
from turbodiffusion.texts import Text, text

log = logging.getLogger(__name__)

LOST_SHOWN = 60  # characters of what a prompt loses

OnNotice = Callable[[Text | str], None]
OnState = Callable[[State], None]


class Pipeline:
    """Makes videos with a loaded model, one at a time: a second thread waits for its turn."""

    def __init__(self, model: LoadedModel) -> None:
        """Use a model that is in memory already; pipelines that share one share its lock."""
        self.model = model

    @classmethod
    def load(
        cls,
        model: str | LoadOptions = "demo",
        *,
        requests: Sequence[Request] = (),
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> "Pipeline":
        """Load a model by name, folder or file; `options` are the fields of LoadOptions.

        requests: what is going to be asked for, checked before anything is fetched or loaded. Raises a UserError, one
        line: RequestError, then MachineError, then MissingFilesError or CheckpointError.
        """
        chosen = replace(model, **options) if isinstance(model, LoadOptions) else LoadOptions(model, **options)
        return cls(LoadedModel.load(chosen, requests=requests, on_progress=on_progress))

    def generate(
        self,
        request: Request,
        on_progress: OnProgress | None = None,
        on_notice: OnNotice | None = None,
        *,
        resume: State | None = None,
        on_state: OnState | None = None,
    ) -> Result:
        """Make the video of a request. The same resolved request gives the same bytes on the same device.

        Attention or linears that differ from the loaded ones reconfigure the model first. `on_progress` and `on_state`
        may raise to stop: the exception comes through and the pipeline stays usable. `on_notice` gets each of the
        result's notices before the work begins. `on_state` gets the sampler's state after each step; given back as
        `resume`, with the same resolved request, the video goes on there, to the same bytes. Raises RequestError,
        MachineError, or OutputError for a result that is not a video.
        """
        request = as_request(request)
        with self.model.lock, current_device(self.model.device), telling_memory():
            try:
                return self._generate(request, on_progress, on_notice, resume, on_state)
            except torch.OutOfMemoryError as error:
                traceback.clear_frames(error.__traceback__)  # they hold the tensors
                if not self.model.drop_graphs():
                    raise MachineError("machine.out_of_memory", device=str(self.model.device)) from error
            log.warning("there is less memory than planned: again, without CUDA graphs from now on")
            return self._generate(request, on_progress, None, resume, on_state)

    def _generate(
        self,
        request: Request,
        on_progress: OnProgress | None,
        on_notice: OnNotice | None,
        resume: State | None,
        on_state: OnState | None,
    ) -> Result:
        model, preset = self.model, self.model.preset
        timer = StageTimer(on_progress, model.device)

        # 1. check the request, and fill in what it leaves to the model
        if request.model is not None and request.model.lower() not in (model.name.lower(), preset.name.lower()):
            raise RequestError("request.other_model", held=model.name, asked=repr(request.model))
        filled = model.fill(request)
        compute = model.compute_for(filled)
        image = None if filled.image is None else load_image(filled.image)
        width, height = video_size(filled, image)

        # 2. plan the memory, and tell what the user should know before the work
        job = model.job(filled, (width, height))
        notices = (*self._notices(request, filled, compute), *_cut(image, width, height), *model.apply_plan(job))
        encoder = video.Encoder(width, height, preset.fps, {"request": filled.to_json(), "version": __version__})
        if on_notice is not None:
            for notice in notices:
                on_notice(notice)

        # 3. make the model compute as asked
        timer.seconds["load"], model.load_seconds = model.load_seconds, 0.0
        model.reconfigure(compute, timer)

        with torch.inference_mode():
            # 4. encode the prompt, and the image
            prompt_embeds = self._encode_text(filled, timer)
            condition = None if image is None else self._encode_image(image, job, timer)
            model.free_cache()
            # 5. denoise a latent
            predict_velocity = model.predict_velocity(
                prompt_embeds,
                guidance=filled.guidance,
                guidance_low=filled.guidance_low,
                boundary=filled.boundary,
                condition=condition,
            )
            latent = self._denoise(predict_velocity, filled, job, timer, resume, on_state)
            model.free_cache()
            # 6. decode it, and encode the mp4 meanwhile
            frames, mp4 = self._decode(latent, (width, height), encoder, timer)
        name = video.output_name(preset.task, filled.seed, preset.file_name, datetime.now())
        return Result(filled, frames, mp4, name, timer.seconds, tuple(map(str, notices)))

    def _notices(self, request: Request, filled: Request, compute: ComputeConfig) -> list[Text | str]:
        """What was asked for and has no meaning here, and what the model was not trained for."""
        preset = self.model.preset
        if request.attention_type == "auto":
            request = replace(request, attention_type=filled.attention_type)
        notices: list[Text | str] = list(request.notices(preset))
        notices += self._cut_prompts(filled)
        if compute.sparse and preset.transformer.attention_type not in SPARSE_ATTENTION:
            notices.append(text("notice.untrained", attention=repr(compute.attention_type), model=self.model.name))
        if preset.subjects:
            notices += filter(None, [describe_gap(filled.prompt, named(preset.subjects))])
            if filled.num_frames != preset.num_frames:
                notices.append(text("notice.untrained_length", model=preset.name, frames=preset.num_frames))
        return notices

    def _cut_prompts(self, filled: Request) -> Iterator[Text]:
        """Yield a notice for a prompt that has more tokens than the text encoder reads."""
        for field, prompt in (("prompt", filled.prompt), ("negative_prompt", filled.negative_prompt)):
            tokenizer = self.model.prompt_encoder.tokenizer
            count, lost = tokenizer.lost(prompt) if prompt else (0, "")
            if count > tokenizer.text_len and (field == "prompt" or filled.guidance != 1):
                words = lost if len(lost) <= LOST_SHOWN else f"{lost[:LOST_SHOWN].rstrip()}..."
                yield text("notice.cut", field=field, count=count, limit=tokenizer.text_len, words=words)

    def _encode_text(self, request: Request, timer: StageTimer) -> list[Tensor]:
        """Embeddings [1, S, E] of the prompt and, under guidance, of the negative prompt."""
        prompts = [request.prompt]
        if request.guided:
            prompts.append(request.negative_prompt or "")
        with timer.run("text_encode", len(prompts)) as step:
            prompt_embeds = []
            for prompt in prompts:
                prompt_embeds.append(self.model.prompt_encoder.encode(prompt))
                step()
        return prompt_embeds

    def _encode_image(self, image: NDArray[np.uint8], job: Job, timer: StageTimer) -> Tensor:
        """The condition [1, 4 + z_dim, T, H/8, W/8]: mask of the given frame, latent of the image and then grey."""
        with timer.run("image_encode", 1) as step:
            first_HWC = torch.from_numpy(fit(image, job.width, job.height)).to(self.model.device)
            video_BCFHW = torch.zeros(1, 3, job.num_frames, job.height, job.width, device=self.model.device)
            video_BCFHW[0, :, 0] = first_HWC.permute(2, 0, 1) / 127.5 - 1
            latent_BCTHW = self.model.vae.encode(video_BCFHW)
            mask_BCTHW = torch.zeros_like(latent_BCTHW[:, :4])
            mask_BCTHW[:, :, 0] = 1
            step()
        return torch.cat((mask_BCTHW, latent_BCTHW), dim=1)

    def _denoise(
        self,
        predict_velocity: PredictVelocity,
        request: Request,
        job: Job,
        timer: StageTimer,
        resume: State | None,
        on_state: OnState | None,
    ) -> Tensor:
        """The finished latent [1, z_dim, T, H/8, W/8], from pure noise or from a state of the same request."""
        vae, device = self.model.preset.vae, self.model.device
        length = (job.num_frames - 1) // vae.time_factor + 1
        shape = (1, vae.z_dim, length, job.height // vae.space_factor, job.width // vae.space_factor)
        assert request.num_steps is not None
        if resume is not None:
            if tuple(resume.x.shape) != shape or not 0 <= resume.step <= request.num_steps:
                raise RequestError("request.other_state", step=resume.step, shape=list(resume.x.shape))
            resume = resume.to(device)
        with timer.run("denoise", request.num_steps, done=resume.step if resume else 0) as step:

            def on_step(state: State) -> None:
                if not torch.isfinite(state.x).all():
                    raise OutputError("output.not_finite", step=state.step, steps=request.num_steps)
                step()
                if on_state is not None:
                    on_state(state)

            if request.sampler == "rcm":
                assert request.sigma_max is not None
                times = rcm_times(request.num_steps, request.sigma_max)
                return sample_rcm(
                    predict_velocity,
                    shape,
                    times,
                    request.seed,
                    ode=request.ode,
                    device=device,
                    on_step=on_step,
                    start=resume,
                )
            assert request.shift is not None
            times = flow_times(request.num_steps, request.shift)
            return sample_flow(
                predict_velocity, shape, times, request.seed, device=device, on_step=on_step, start=resume
            )

    def _decode(
        self, latent_BCTHW: Tensor, size: tuple[int, int], encoder: video.Encoder, timer: StageTimer
    ) -> tuple[NDArray[np.uint8], bytes]:
        """Frames [F, H, W, 3] and the mp4: one thread decodes chunks, another encodes those before."""
        model = self.model
        count = (latent_BCTHW.shape[2] - 1) * model.preset.vae.time_factor + 1
        frames = new_frames(count, size[1], size[0], model.device)
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
            try:
                with timer.run("vae_decode", latent_BCTHW.shape[2], wait=False) as step:
                    encoding = []
                    for planes in copy_to_host(model.vae.decode_chunks(latent_BCTHW), frames):
                        encoding.append(pool.submit(encoder.add, planes))
                        if encoding[0].done():  # a failure is told now, not after all frames
                            encoding.pop(0).result()
                        step()
                with timer.run("mp4_encode", 1) as step:
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


def _cut(image: NDArray[np.uint8] | None, width: int, height: int) -> list[Text]:
    """A notice for a picture of which less than a half is seen."""
    if image is None or (share := share_seen(image, width, height)) >= 0.5:
        return []
    picture = f"{image.shape[1]}x{image.shape[0]}"
    return [text("notice.image_cut", size=f"{width}x{height}", picture=picture, percent=round(100 * share))]
