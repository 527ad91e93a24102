"""Fine-tuning a network for sparse-linear attention (SLA), white box: it learns to say what the dense one says.

The same noisy input goes to the frozen network with dense attention and to a copy with SLA, all of whose weights are
trained and whose projection begins at zero; the loss is the mean squared error between their velocities. Source:
TurboDiffusion (arXiv 2512.16093), SLA (arXiv 2509.24006).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from turbodiffusion.models.text import TextEncoder
from turbodiffusion.models.wan import WanTransformer
from turbodiffusion.parallel.groups import rank_and_size
from turbodiffusion.training.data import LatentBank
from turbodiffusion.training.trainer import Loss, Schedule, Trainer, step_generator, torch_generator


@dataclass(frozen=True)
class SLARecipe:
    """`batch` clips a step on each rank; sigma_mean and sigma_std: of log(t / (1 - t)), t the flow time."""

    batch: int = 64
    sigma_mean: float = 1.5
    sigma_std: float = 1.6
    drop: float = 0.1  # of the captions, as guidance asks both networks without one
    seed: int = 12
    compile: bool = True


def sla_loss(dense: WanTransformer, sparse: WanTransformer, x_BCTHW: Tensor, t_B: Tensor, states_BSE: Tensor) -> Tensor:
    """Mean squared error between the velocities at flow times t."""
    with torch.no_grad():
        expected = dense(x_BCTHW, 1000 * t_B, dense.encode_context(states_BSE)).float()
    return (sparse(x_BCTHW, 1000 * t_B, sparse.encode_context(states_BSE)).float() - expected).square().mean()


def make_loss(
    dense: WanTransformer, sparse: WanTransformer, text: TextEncoder, bank: LatentBank, recipe: SLARecipe
) -> Loss:
    """The loss of step s, everything drawn from (seed, step, rank)."""
    losses = torch.compile(sla_loss) if recipe.compile else sla_loss

    def loss(step: int) -> dict[str, Tensor]:
        bank.advance(step)
        rng = step_generator(recipe.seed, step, rank_and_size()[0])
        batch = bank.batch(rng, recipe.batch, drop=recipe.drop)
        x0 = batch.latent_BCTHW.float()
        device = x0.device
        generator = torch_generator(rng, device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        log_sigma = recipe.sigma_mean + recipe.sigma_std * torch.randn(len(x0), generator=generator, device=device)
        t_B = log_sigma.sigmoid()
        t = t_B[:, None, None, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            with torch.no_grad():
                states = text(batch.ids_BS, batch.mask_BS)
            return {"loss": losses(dense, sparse, (1 - t) * x0 + t * noise, t_B, states)}

    return loss


def train_sla(
    dense: WanTransformer,
    sparse: WanTransformer,
    text: TextEncoder,
    bank: LatentBank,
    recipe: SLARecipe,
    schedule: Schedule,
    run: Path,
) -> Trainer:
    """Train; resumes what is in `run`, else `sparse` begins with the weights of `dense` and a projection of zeros."""
    sparse.load_state_dict(sparse.state_dict() | dense.state_dict())
    sparse.train().requires_grad_(True)
    for module in (dense, text):
        module.eval().requires_grad_(False)
    trainer = Trainer(nn.ModuleDict({"transformer": sparse}), schedule, run)
    trainer.resume()
    trainer.fit(make_loss(dense, sparse, text, bank, recipe), prepare=bank.advance)
    return trainer
