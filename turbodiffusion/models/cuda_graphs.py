"""CUDA graphs of repeated calls: a thousand launches, each of them work for the CPU, become one."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Tensors = Tensor | tuple["Tensors", ...]
Result = TypeVar("Result", bound=Tensors)


class CudaGraphCache:
    """Call functions from tensors to tensors; replay repeated calls as CUDA graphs.

    Use it under torch.inference_mode and on one GPU. A function must give its tensors new memory and read no other
    tensors than its inputs and such as live as long as the graphs do, at their addresses: `clear` when they move.
    Beside inputs and outputs of their own the graphs hold the working memory of the largest call, also between calls:
    two of them must not run at a time.
    """

    def __init__(self) -> None:
        # One for all captures: in a pool of memory only what was freed on the same stream is taken again.
        self._stream: Any = None
        self.clear()

    def clear(self) -> None:
        """Drop all graphs. PyTorch has their memory then, for other graphs, and for all once its cache is emptied."""
        self._captured: dict[Hashable, _Captured] = {}
        self._calls: Counter[Hashable] = Counter()
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(
        self, name: Hashable, function: Callable[..., Result], *inputs: Tensors, warmup_calls: int = 1
    ) -> Result:
        """Return `function(*inputs)`, the function that `name` stands for: tensors and tuples of them in, the same out.

        warmup_calls: how many calls of a key (the name and the inputs' shapes and dtypes) run without a graph; a call
        that is not repeated is not worth a capture.
        """
        tensors = list(_flat(inputs))
        key = name, tuple((x.shape, x.dtype) for x in tensors)
        if key not in self._captured:
            self._calls[key] += 1
            if self._calls[key] <= warmup_calls:
                return function(*inputs)
            self._captured[key] = self._capture(function, inputs)
        captured = self._captured[key]
        torch._foreach_copy_(captured.inputs, tensors)
        captured.graph.replay()
        return cast("Result", _built(captured.outputs, (x.clone() for x in _flat(captured.outputs))))

    def _capture(self, function: Callable[..., Tensors], inputs: tuple[Tensors, ...]) -> "_Captured":
        static_inputs = [x.clone() for x in _flat(inputs)]
        arguments = cast("tuple[Tensors, ...]", _built(inputs, iter(static_inputs)))
        current = torch.cuda.current_stream(static_inputs[0].device)
        self._stream = self._stream or torch.cuda.Stream(static_inputs[0].device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function(*arguments)  # libraries set themselves up for a stream outside the graph
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # thread_local: another thread may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = function(*arguments)
        return _Captured(graph, static_inputs, outputs)


@dataclass(frozen=True)
class _Captured:
    """A graph, the tensors that it reads and those that it writes."""

    graph: Any
    inputs: list[Tensor]
    outputs: Tensors


def _flat(tensors: Tensors) -> Iterator[Tensor]:
    if isinstance(tensors, Tensor):
        yield tensors
    else:
        for part in tensors:
            yield from _flat(part)


def _built(like: Tensors, tensors: Iterator[Tensor]) -> Tensors:
    """Take the next tensors, in tuples as `like` has them."""
    return next(tensors) if isinstance(like, Tensor) else tuple(_built(part, tensors) for part in like)
