"""Work that is done again and again over tensors of the same shapes: recorded once and replayed.

On a GPU a record is a CUDA graph, which starts hundreds of kernels in one launch. What is recorded must use only memory that
stays where it is, must have run before (libraries and compiled kernels are loaded then), and must never ask the device.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Generator, Tensor

log = logging.getLogger("lmtrain")

PLAIN_CALLS = 3  # with tensors of some shapes, before these are recorded

Work = Callable[[], None]
Record = Callable[[Work, Generator | None], Work]  # takes the work and what it draws from; gives what plays it again
Function = Callable[..., tuple[Tensor, ...]]
Shapes = tuple[torch.Size, ...]


def record_cuda_graph(work: Work, generator: Generator | None) -> Work:
    """Records `work` without doing it."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            work()
    finally:
        torch.cuda.set_stream(stream)  # where recording fails, `torch.cuda.graph` leaves its own stream behind
    return graph.replay


class Replayed:
    """A function from tensors to tensors, without gradients, that is recorded for the shapes it first sees more often.

    Other shapes are computed plainly, and all are where recording fails, which is said. A call's results are valid until
    the next call, which may take them as arguments.
    """

    def __init__(self, function: Function, record: Record = record_cuda_graph) -> None:
        self.function, self.record = function, record
        self._seen: Counter[Shapes] = Counter()
        self._shapes: Shapes | None = None
        self._play: Work | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(tensor.shape for tensor in inputs)
        self._seen[shapes] += 1
        if self._shapes is None and self._seen[shapes] > PLAIN_CALLS:
            self._shapes = shapes
            self._inputs = tuple(tensor.clone() for tensor in inputs)
            try:
                self._play = self.record(self._work, None)
            except RuntimeError as error:
                log.warning("This cannot be recorded as a CUDA graph, and is computed kernel by kernel: %s", error)
        if self._play is None or shapes != self._shapes:
            return self.function(*inputs)
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            buffer.copy_(tensor)
        self._play()
        return self._outputs

    def _work(self) -> None:
        kind = self._inputs[0].device.type
        # Weights that an autocast has kept in its type lie in memory that does not stay.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
            outputs = self.function(*self._inputs)
        # An output that is a view of an input, such as the last token read, would be overwritten before it is read.
        taken = {tensor.untyped_storage().data_ptr() for tensor in self._inputs}
        self._outputs = tuple(tensor.clone() if tensor.untyped_storage().data_ptr() in taken else tensor for tensor in outputs)
