"""The processes of one run: this one's rank, how many there are, and its device (torch.distributed)."""

import os

import torch
import torch.distributed as dist


def rank_and_size() -> tuple[int, int]:
    """Return (rank, number of ranks); (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start_distributed() -> torch.device:
    """Join torchrun's group if there is one, and return this process's device."""
    cuda = torch.cuda.is_available()
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
