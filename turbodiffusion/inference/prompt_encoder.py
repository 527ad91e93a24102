"""Prompts as the transformer reads them: tokenizer, text encoder, and the embeddings of the last prompts."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from turbodiffusion.checkpoint.load import load_text
from turbodiffusion.checkpoint.places import read_vocabulary
from turbodiffusion.config import TextConfig
from turbodiffusion.models.text import TextEncoder, Tokenizer

CACHED_PROMPTS = 16  # whose embeddings are kept; one of umT5-XXL's is 4 MB


class PromptEncoder:
    """Embeddings of prompts on `device`. A cached prompt costs nothing.

    Another one of an offloaded encoder costs a copy of all its layers.
    """

    def __init__(self, encoder: TextEncoder, tokenizer: Tokenizer, device: torch.device) -> None:
        """Use networks that are in memory already."""
        self.encoder, self.tokenizer, self._device = encoder, tokenizer, device
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def load(
        cls,
        config: TextConfig,
        tokenizer: Path,
        weights: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
    ) -> "PromptEncoder":
        """Read the vocabulary and the weights. offload: they stay in CPU memory. Raises CheckpointError."""
        vocabulary = Tokenizer(tokenizer, config.text_len, model=read_vocabulary(tokenizer))
        encoder = TextEncoder(config, device="meta", dtype=dtype)
        load_text(encoder, weights, device="cpu" if offload else device)
        encoder.eval().requires_grad_(False)
        if offload:
            encoder.offload(device)
        return cls(encoder, vocabulary, device)

    def encode(self, prompt: str) -> Tensor:
        """Return the embeddings [1, S, E] of a prompt."""
        if prompt not in self._cache:
            self._cache[prompt] = self.encode_batch([prompt])
        self._cache.move_to_end(prompt)
        while len(self._cache) > CACHED_PROMPTS:
            self._cache.popitem(last=False)
        return self._cache[prompt]

    def encode_batch(self, prompts: Sequence[str], *, clean: bool = True) -> Tensor:
        """Return the embeddings [B, S, E] of prompts, not cached. clean: as `Tokenizer`."""
        ids_BS, mask_BS = self.tokenizer(prompts, clean=clean)
        return self.encoder(ids_BS.to(self._device), mask_BS.to(self._device))
