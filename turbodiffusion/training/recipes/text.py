"""Teaching the text encoder to read before there is anything to draw: it learns to tell a caption's factors.

Flow matching teaches a text encoder through the whole transformer, which is slow. A linear layer on the mean of its
states, asked for each factor that the caption tells (`captions.TOLD`), teaches it directly and without rendering; the
layers are thrown away. It takes minutes even on a CPU, and `train flow --from` begins from what it leaves.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from turbodiffusion.config import TextConfig
from turbodiffusion.demo.captions import TOLD, caption_and_told
from turbodiffusion.demo.factors import sample_factors
from turbodiffusion.demo.subjects import Subject
from turbodiffusion.models.text import TextEncoder, Tokenizer
from turbodiffusion.training.trainer import Loss, Schedule, Trainer, step_generator

SEED = 4


def train_text(
    subjects: Sequence[Subject],
    tokenizer: Tokenizer,
    config: TextConfig,
    schedule: Schedule,
    run: Path,
    device: torch.device,
    *,
    batch: int = 128,
) -> TextEncoder:
    """Train; resumes what is in `run`. Logs the share of factors told right."""
    torch.manual_seed(SEED)
    text = TextEncoder(config, device=device)
    heads = nn.ModuleDict({question: nn.Linear(config.d_model, len(answers)) for question, answers in TOLD.items()})
    trainer = Trainer(nn.ModuleDict({"text": text, "heads": heads.to(device)}), schedule, run)
    trainer.resume()
    trainer.fit(make_loss(text, heads, subjects, tokenizer, batch, device))
    text.load_state_dict(trainer.average("text"))
    return text


def make_loss(
    text: TextEncoder,
    heads: nn.ModuleDict,
    subjects: Sequence[Subject],
    tokenizer: Tokenizer,
    batch: int,
    device: torch.device,
) -> Loss:
    """The loss of step s on captions of its own, all drawn from (seed, step)."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_generator(SEED, step)
        told = [caption_and_told(factors, rng) for factors in sample_factors(rng, batch, subjects=subjects)]
        ids_BS, mask_BS = tokenizer([caption for caption, _ in told], clean=False)
        length = int(mask_BS.sum(1).max())  # all further columns are padding
        ids_BS, mask_BS = ids_BS[:, :length].to(device), mask_BS[:, :length].to(device)
        mean_BE = text(ids_BS, mask_BS).sum(1) / mask_BS.sum(1, keepdim=True)
        total, right = mean_BE.new_zeros(()), mean_BE.new_zeros(())
        for question, answers in TOLD.items():
            answer_B = torch.tensor([answers.index(answer[question]) for _, answer in told], device=device)
            logits_BA = heads[question](mean_BE)
            total = total + cross_entropy(logits_BA, answer_B)
            right = right + (logits_BA.argmax(1) == answer_B).float().mean() / len(TOLD)
        return {"loss": total, "right": right}

    return loss
