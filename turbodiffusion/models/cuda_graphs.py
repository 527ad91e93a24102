"""CUDA graphs of calls that come again: a thousand launches, each of them work for the CPU, become one."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Tensors = Tensor | tuple["Tensors", ...]
Result = TypeVar("Result", bound=Tensors)


class Graphs:
    """Calls of functions from tensors to tensors; those that come again are replayed as CUDA graphs.

    Use it under torch.inference_mode and on one GPU. A function must give its tensors new memory and read no other
    tensors than its inputs and such as live as long as the graphs do, at their places: `forget` when they move. Beside
    inputs and outputs of their own the graphs hold the working memory of the largest call, also between calls: two of
    them must not run at a time.
    """

    def __init__(self) -> None:
        # One for all captures: in a pool of memory only what was freed on the same stream is taken again.
        self._stream: Any = None
        self.forget()

    def forget(self) -> None:
        """Drop all graphs. PyTorch has their memory then, for other graphs, and for all once its cache is emptied."""
        self._captured: dict[Hashable, _Captured] = {}
        self._calls: Counter[Hashable] = Counter()
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(self, name: Hashable, function: Callable[..., Result], *inputs: Tensors, after: int = 1) -> Result:
        """`function(*inputs)`, the function that `name` stands for: tensors and tuples of tensors in, the same out.

        after: calls of a form (the name and the inputs' shapes and dtypes) that run as they are, as what comes but
        once is not worth a capture.
        """
        tensors = list(_flat(inputs))
        form = name, tuple((x.shape, x.dtype) for x in tensors)
        if form not in self._captured:
            self._calls[form] += 1
            if self._calls[form] <= after:
                return function(*inputs)
            self._captured[form] = self._capture(function, inputs)
        captured = self._captured[form]
        torch._foreach_copy_(captured.inputs, tensors)
        captured.graph.replay()
        return cast("Result", _built(captured.outputs, (x.clone() for x in _flat(captured.outputs))))

    def _capture(self, function: Callable[..., Tensors], inputs: tuple[Tensors, ...]) -> "_Captured":
        held = [x.clone() for x in _flat(inputs)]
        mine = cast("tuple[Tensors, ...]", _built(inputs, iter(held)))
        here = torch.cuda.current_stream(held[0].device)
        self._stream = self._stream or torch.cuda.Stream(held[0].device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            function(*mine)  # libraries set themselves up for a stream outside the graph
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # thread_local: another thread may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = function(*mine)
        return _Captured(graph, held, outputs)


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
    """The next tensors, in tuples as `like` has them."""
    return next(tensors) if isinstance(like, Tensor) else tuple(_built(part, tensors) for part in like)
