"""Layers kept in CPU memory and copied to a device only while they compute.

Layers of one form need two buffers in all: while the layer in one computes, the next is copied into the other. The
tensors of a layer lie side by side in one piece of CPU memory, so that it is one copy; for a GPU that memory is pinned,
because only from there a copy runs beside the computing and at the bus's full speed. umT5-XXL's 24 layers have 386 MB
each, 9.3 GB in all: 0.2 s at the 50 GB/s of PCIe 5 x16.
"""

import copy
import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

ALIGNED = 512  # bytes between the starts of two tensors, as PyTorch's own allocator places them
PAGE = 4096  # bytes; CUDA pins whole pages, and none twice


class LayerOffload:
    """Move the tensors of `layers` into CPU memory; `on_device` yields the layers on `device`, one after the other.

    The layers stay modules with the same state dict, without gradients. Raises ValueError for layers that differ in
    form or have buffers.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        self._device, self._first = device, layers[0]
        self._slots: dict[str, tuple[int, torch.Size, torch.dtype]] = {}  # offset in bytes
        self._bytes = 0
        for name, tensor in layers[0].named_parameters():
            self._slots[name] = self._bytes, tensor.shape, tensor.dtype
            self._bytes += -(-tensor.nbytes // ALIGNED) * ALIGNED
        self._bytes = -(-self._bytes // PAGE) * PAGE
        self._memory = [self._offload(layer) for layer in layers]
        if device.type == "cuda":
            self._pin()

    def on_device(self) -> Iterator[nn.Module]:
        """Yield each layer on the device, in order; it may be used until the next one is asked for."""
        buffers = [torch.empty(self._bytes, dtype=torch.uint8, device=self._device) for _ in range(2)]
        layers = [self._layer_over(buffer) for buffer in buffers]
        fill = self._prefetch if self._device.type == "cuda" else self._fill
        for index in fill(buffers):
            yield layers[index % 2]

    def _fill(self, buffers: Sequence[Tensor]) -> Iterator[int]:
        for index, memory in enumerate(self._memory):
            buffers[index % 2].copy_(memory)
            yield index

    def _prefetch(self, buffers: Sequence[Tensor]) -> Iterator[int]:
        """Fill them on a GPU, on a stream of its own that copies the next layer while one computes."""
        main, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        copied, used = ([torch.cuda.Event() for _ in buffers] for _ in range(2))

        def start(index: int) -> None:
            with torch.cuda.stream(side):
                side.wait_event(used[index % 2])  # at once where nothing has been recorded yet
                buffers[index % 2].copy_(self._memory[index], non_blocking=True)
                copied[index % 2].record(side)

        side.wait_stream(main)  # the buffers' memory may have been freed by work that is still queued
        try:
            start(0)
            for index in range(len(self._memory)):
                if index + 1 < len(self._memory):
                    start(index + 1)
                main.wait_event(copied[index % 2])
                yield index
                used[index % 2].record(main)
        finally:
            side.synchronize()  # before the buffers' memory is anyone else's, and the layers' is let go of

    def _offload(self, layer: nn.Module) -> Tensor:
        """Move the layer's tensors into one piece of CPU memory and return it."""
        parameters = dict(layer.named_parameters())
        form = {name: (tensor.shape, tensor.dtype) for name, tensor in parameters.items()}
        if form != {name: slot[1:] for name, slot in self._slots.items()} or any(True for _ in layer.buffers()):
            raise ValueError("layers that are streamed have one form, and parameters alone")
        memory = torch.empty(self._bytes + PAGE, dtype=torch.uint8)
        memory = memory[-memory.data_ptr() % PAGE :][: self._bytes]
        views = self._views(memory)
        for name, view in views.items():
            view.copy_(parameters[name].detach())
        layer.load_state_dict(views, assign=True)
        layer.requires_grad_(False)
        return memory

    def _layer_over(self, buffer: Tensor) -> nn.Module:
        """Return a layer whose tensors lie in a buffer."""
        views, first = self._views(buffer), self._first
        return copy.deepcopy(
            first, {id(p): nn.Parameter(views[name], requires_grad=False) for name, p in first.named_parameters()}
        )

    def _views(self, memory: Tensor) -> dict[str, Tensor]:
        pieces = {name: memory[start:].view(dtype) for name, (start, _, dtype) in self._slots.items()}
        return {name: pieces[name][: shape.numel()].view(shape) for name, (_, shape, _) in self._slots.items()}

    def _pin(self) -> None:
        """Register the memory with CUDA: PyTorch's allocator of pinned memory takes powers of two."""
        runtime = torch.cuda.cudart()
        for memory in self._memory:
            if runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0) != runtime.cudaError.success:
                log.warning("CUDA pins no more CPU memory: the text encoder's layers are copied more slowly")
                with suppress(RuntimeError):
                    torch.zeros(1, device=self._device)  # the next launch reports the failure; this one is for that
                return
            weakref.finalize(memory, runtime.cudaHostUnregister, memory.data_ptr()).atexit = False
