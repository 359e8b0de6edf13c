"""Records work once and replays it, for work that is done many times over tensors of the same shapes.

On a GPU a record is a CUDA graph, which starts hundreds of kernels in one launch. Work can be recorded if it uses only memory
that stays in its place, if it has run before (so that libraries and compiled kernels are loaded), and if it never waits for
the device.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Generator, Tensor

log = logging.getLogger("lmtrain")

PLAIN_CALLS = 3  # so many calls with the same shapes are computed plainly before the next one is recorded

Work = Callable[[], None]
Record = Callable[[Work, Generator | None], Work]  # takes the work and its generator; returns a function that replays it
Function = Callable[..., tuple[Tensor, ...]]
Shapes = tuple[torch.Size, ...]


def record_cuda_graph(work: Work, generator: Generator | None) -> Work:
    """Records `work` without doing it, and returns a function that does it."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            work()
    finally:
        torch.cuda.set_stream(stream)  # if recording fails, `torch.cuda.graph` leaves its own stream behind
    return graph.replay


class Replayed:
    """A function from tensors to tensors, without gradients, that is recorded for one choice of shapes.

    These are the first shapes that come more than PLAIN_CALLS times. Calls with other shapes are computed plainly. If recording
    fails, all are, and a warning says so. The results of a call are valid until the next call, which may take them as
    arguments.
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
        # An autocast keeps weights in its own type, in memory that does not stay.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
            outputs = self.function(*self._inputs)
        # An output that is a view of an input, such as the last token read, would be overwritten before it is read.
        taken = {tensor.untyped_storage().data_ptr() for tensor in self._inputs}
        self._outputs = tuple(tensor.clone() if tensor.untyped_storage().data_ptr() in taken else tensor for tensor in outputs)
