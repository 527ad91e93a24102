"""Tensors of a mapped file brought to a GPU ahead of their use, by several threads through pinned memory.

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
AHEAD = 256 << 20  # bytes on the device beyond the tensor that is used
SMALL = 64 << 10  # bytes that CUDA copies without waiting: handing them to a thread takes longer


class _Lane(threading.local):
    """What a thread has to itself."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        with torch.cuda.device(device) if on_gpu else nullcontext():  # else pinning would start the first GPU too
            self.memory = torch.empty(PIECE, dtype=torch.uint8, pin_memory=on_gpu)
        self.stream = torch.cuda.Stream(device) if on_gpu else None

    def carry(self, source: NDArray[np.uint8], target: Tensor, free: torch.cuda.Event | None) -> None:
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
def ahead(
    read: Callable[[str], Tensor], order: Sequence[str], device: torch.device
) -> Iterator[Callable[[str], Tensor]]:
    """A `read` that gives new tensors on `device`, each name once and in this order, for use on the current stream."""
    lane, waiting = _Lane(device), iter(order)
    main = torch.cuda.current_stream(device) if device.type == "cuda" else None
    coming: deque[tuple[str, Tensor, list[Future[None]]]] = deque()
    under_way = 0  # bytes

    def start() -> None:
        """Send the next tensors on their way: one at least, more up to AHEAD."""
        nonlocal under_way
        while (not coming or under_way < AHEAD) and (name := next(waiting, None)) is not None:
            stored = read(name)
            if stored.nbytes <= SMALL:
                coming.append((name, stored, []))
                continue
            target = torch.empty(stored.shape, dtype=stored.dtype, device=device)
            free = main.record_event() if main is not None else None  # work that is queued may have used the memory
            source, place = (t.reshape(-1).view(torch.uint8) for t in (stored, target))
            pieces = zip(source.split(PIECE), place.split(PIECE), strict=True)
            coming.append((name, target, [pool.submit(lane.carry, a.numpy(), b, free) for a, b in pieces]))
            under_way += target.nbytes

    def take(name: str) -> Tensor:
        nonlocal under_way
        start()
        its_name, target, pieces = coming.popleft()
        assert its_name == name, f"{name} is read before {its_name}"
        if not pieces:
            return target.to(device, non_blocking=True, copy=True)
        under_way -= target.nbytes
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
