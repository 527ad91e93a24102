"""Arithmetic that mixed precision must leave alone: the float32 time path and head, attention, 8-bit linears."""

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Switch a surrounding torch.autocast off; nothing to do on "meta", which has none.

    Named by hand: torch.amp.is_autocast_available cannot be traced by torch.compile.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
