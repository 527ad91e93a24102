"""Training the demo model's VAE on fresh renders: L1 and squared error of pixels, L1 of their differences, a small KL.

The differences (one pixel apart in space) keep edges sharp without a perceptual network, whose weights cannot be had
here. What moves is an eighth of a clip and nearly all of its error: most crops lie on the subject, and squared error,
which grows with the size of a mistake, stands beside L1. The latent's mean and standard deviation are measured at the
end and go into the configuration.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from turbodiffusion.config import VAEConfig
from turbodiffusion.demo.renderer import World
from turbodiffusion.evaluation.metrics import psnr
from turbodiffusion.models.vae.model import WanVAE
from turbodiffusion.parallel.groups import rank_and_size
from turbodiffusion.training.data import ClipBank
from turbodiffusion.training.trainer import Loss, Schedule, Trainer, step_generator, torch_generator


@dataclass(frozen=True)
class VAERecipe:
    """Data and losses: each rank renders `clips` clips once and a step sees `batch` crops of side x side pixels.

    Crops are small in space but of the clip's whole length: trained on half of it, the VAE let colours drift in the
    frames that it had never seen.
    """

    clips: int = 2048
    batch: int = 8
    side: int = 96
    on_subject: float = 0.7  # share of the crops
    square_weight: float = 4.0
    edge_weight: float = 0.5
    kl_weight: float = 1e-4
    seed: int = 1
    compile: bool = True


def vae_loss(vae: WanVAE, video_BCFHW: Tensor, noise_BCTHW: Tensor, recipe: VAERecipe) -> dict[str, Tensor]:
    """Losses of one batch of crops; the total is under "loss". `noise` is standard normal, of the latent's shape."""
    mean, logvar = (x.float() for x in vae.encode_moments(video_BCFHW))
    logvar = logvar.clamp(-30, 20)
    made = vae.decode_whole(mean + torch.exp(0.5 * logvar) * noise_BCTHW).float()
    error = made - video_BCFHW
    pixel = error.abs().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    square = error.square().mean()
    total = pixel + recipe.square_weight * square + recipe.edge_weight * edges + recipe.kl_weight * kl
    quality = -10 * torch.log10(square.detach() / 4)
    return {"loss": total, "pixel": pixel, "edges": edges, "kl": kl, "psnr": quality}


def make_loss(vae: WanVAE, bank: ClipBank, recipe: VAERecipe) -> Loss:
    """The loss of step s: crops and noise drawn from (seed, step, rank)."""
    rank, _ = rank_and_size()
    device, side = bank.device, recipe.side // vae.config.space_factor
    frames = (bank.video_BCFHW.shape[2] - 1) // vae.config.time_factor + 1
    shape = (recipe.batch, vae.config.z_dim, frames, side, side)
    losses = torch.compile(vae_loss) if recipe.compile else vae_loss

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_generator(recipe.seed, step, rank)
        video = bank.crops(rng, recipe.batch, recipe.side, recipe.on_subject)
        noise = torch.randn(shape, generator=torch_generator(rng, device), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return losses(vae, video, noise, recipe)

    return loss


@torch.no_grad()
def measure(vae: WanVAE, scenes: World, *, clips: int = 64, seed: int = 10_000) -> tuple[float, Tensor, Tensor]:
    """PSNR (dB) of unseen whole clips through encode and decode, and the latent's mean and std per channel."""
    total = 0.0
    numbers = 0
    sums = torch.zeros(2, vae.config.z_dim, dtype=torch.float64, device=scenes.device)
    for start in range(0, clips, 8):
        video = scenes.render(scenes.sample_factors(step_generator(seed, start), 8))
        with torch.autocast(scenes.device.type, torch.bfloat16, enabled=scenes.device.type == "cuda"):
            mean, _ = vae.encode_moments(video)
            made = vae.decode_whole(mean.float())
        z = mean.double().transpose(0, 1).flatten(1)
        sums += torch.stack([z.sum(1), z.square().sum(1)])
        numbers += z.shape[1]
        total += float(psnr(made.float().clamp(-1, 1), video).sum())
    mean_C = sums[0] / numbers
    return total / (len(range(0, clips, 8)) * 8), mean_C, (sums[1] / numbers - mean_C.square()).sqrt()


def train_vae(
    scenes: World,
    config: VAEConfig,
    recipe: VAERecipe,
    schedule: Schedule,
    run: Path,
    *,
    start: dict[str, Tensor] | None = None,
) -> tuple[Trainer, WanVAE, float]:
    """Train; resumes what is in `run`, else begins from `start`, else from scratch.

    Returns the trainer, the VAE with its latent statistics, and its PSNR: the last weights or their EMA, whichever is
    better (after a long decay of the learning rate the last ones are).
    """
    torch.manual_seed(recipe.seed)
    vae = WanVAE(config, device=scenes.device)
    trainer = Trainer(nn.ModuleDict({"vae": vae}), schedule, run)
    if not trainer.resume() and start is not None:
        trainer.warm_start(start)
    bank = ClipBank(scenes, size=recipe.clips, seed=recipe.seed + 1000 * trainer.rank)
    trainer.fit(make_loss(vae, bank, recipe))
    average = WanVAE(config, device=scenes.device)
    average.load_state_dict(trainer.average("vae"))
    told = {"last": (vae, measure(vae, scenes)), "EMA": (average, measure(average, scenes))}
    name, (best, (quality, mean_C, std_C)) = max(told.items(), key=lambda item: item[1][1][0])
    best.config = replace(config, latents_mean=tuple(mean_C.tolist()), latents_std=tuple(std_C.tolist()))
    if trainer.rank == 0:
        shown = ", ".join(f"{key} {value[1][0]:.2f} dB" for key, value in told.items())
        print(f"VAE after {trainer.step} steps: {shown} PSNR on unseen clips; {name} kept")
    return trainer, best, quality
