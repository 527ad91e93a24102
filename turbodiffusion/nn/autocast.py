"""Arithmetic that mixed precision must leave alone: the float32 time path and head, attention, 8-bit linears."""

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Switch a surrounding torch.autocast off; nothing to do on a device that has none ("meta", say)."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
