"""Prompts as the transformer reads them: tokenizer, text encoder, and the states of the last prompts."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from turbodiffusion.checkpoint.load import load_text
from turbodiffusion.config import TextConfig
from turbodiffusion.models.text import TextEncoder, Tokenizer

KEPT = 16  # prompts whose states are kept; one of umT5-XXL's is 4 MB


class Prompts:
    """States of prompts on `device`. With `offload` the encoder's weights rest in CPU memory.

    A prompt whose states are kept costs nothing; another one of an offloaded encoder costs a copy of all its layers.
    """

    def __init__(
        self,
        config: TextConfig,
        tokenizer: Path,
        weights: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
    ) -> None:
        self._device = device
        self._tokenizer = Tokenizer(tokenizer, config.text_len)
        self._encoder = TextEncoder(config, device="meta", dtype=dtype)
        load_text(self._encoder, weights, device="cpu" if offload else device)
        self._encoder.eval().requires_grad_(False)
        if offload:
            self._encoder.offload(device)
        self._states: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, prompt: str) -> Tensor:
        """States [1, S, E] of a prompt."""
        if prompt not in self._states:
            ids_BS, mask_BS = self._tokenizer([prompt])
            self._states[prompt] = self._encoder(ids_BS.to(self._device), mask_BS.to(self._device))
        self._states.move_to_end(prompt)
        while len(self._states) > KEPT:
            self._states.popitem(last=False)
        return self._states[prompt]
