"""Prefetch of a mapped file's tensors to a GPU, by several threads through pinned memory.

A plain copy to a GPU from a mapped file waits for one core, which takes the file's pages and copies them into the
driver's own pinned memory, 2 to 4 GB/s in all. Here each thread copies pieces into pinned memory of its own and sends
them from there, so that the cores' copies and the bus's run side by side.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE = 16 << 20  # bytes that a thread copies at once, and its pinned memory
THREADS = 8  # a core copies 5 to 10 GB/s out of the page cache, the bus takes 25 to 50
PREFETCH = 256 << 20  # bytes on the device beyond the tensor that is used
SMALL = 64 << 10  # bytes that CUDA copies without waiting: handing them to a thread takes longer


class _Copier(threading.local):
    """A thread's own pinned memory and stream."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        with torch.cuda.device(device) if on_gpu else nullcontext():  # else pinning would start the first GPU too
            self.memory = torch.empty(PIECE, dtype=torch.uint8, pin_memory=on_gpu)
        self.stream = torch.cuda.Stream(device) if on_gpu else None

    def copy(self, source: NDArray[np.uint8], target: Tensor, free: torch.cuda.Event | None) -> None:
        """Copy bytes, PIECE at most; done when it returns. free: from when on the target's memory is nobody else's."""
        piece = self.memory[: len(source)]
        np.copyto(piece.numpy(), source)  # without the interpreter's lock, which NumPy releases
        with torch.inference_mode(target.is_inference()):  # which a thread does not have from the one that started it
            if self.stream is None or free is None:
                target.copy_(piece)
                return
            self.stream.wait_event(free)
            with torch.cuda.stream(self.stream):
                target.copy_(piece, non_blocking=True)
            self.stream.synchronize()


@contextmanager
def prefetch(
    read: Callable[[str], Tensor], order: Sequence[str], device: torch.device
) -> Iterator[Callable[[str], Tensor]]:
    """Give a `read` of new tensors on `device`, each name once and in this order, for use on the current stream."""
    copier, waiting = _Copier(device), iter(order)
    main = torch.cuda.current_stream(device) if device.type == "cuda" else None
    pending: deque[tuple[str, Tensor, list[Future[None]]]] = deque()
    in_flight = 0  # bytes

    def start() -> None:
        """Start the copies of the next tensors: one at least, more up to PREFETCH."""
        nonlocal in_flight
        while (not pending or in_flight < PREFETCH) and (name := next(waiting, None)) is not None:
            stored = read(name)
            if stored.nbytes <= SMALL:
                pending.append((name, stored, []))
                continue
            target = torch.empty(stored.shape, dtype=stored.dtype, device=device)
            free = main.record_event() if main is not None else None  # work that is queued may have used the memory
            source, destination = (t.reshape(-1).view(torch.uint8) for t in (stored, target))
            pieces = zip(source.split(PIECE), destination.split(PIECE), strict=True)
            pending.append((name, target, [pool.submit(copier.copy, a.numpy(), b, free) for a, b in pieces]))
            in_flight += target.nbytes

    def take(name: str) -> Tensor:
        nonlocal in_flight
        start()
        its_name, target, pieces = pending.popleft()
        assert its_name == name, f"{name} is read before {its_name}"
        if not pieces:
            return target.to(device, non_blocking=True, copy=True)
        in_flight -= target.nbytes
        start()
        for piece in pieces:
            piece.result()
        return target

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="read") as pool:
        try:
            yield take
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
