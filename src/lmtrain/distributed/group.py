"""The processes that train one model, and all that they exchange.

    Group       one process: nothing is exchanged, and whatever is asked of it is answered with what was given
    Processes   N of them, by `torch.distributed`: gloo between CPUs, nccl between GPUs

The B columns of a batch are dealt out: process r of N has the columns r B // N to (r + 1) B // N. All of them take the same
steps: whatever decides what comes next is either a function of what is the same everywhere, or comes from one of these calls,
which every process makes in the same order.

    legend   N processes · B columns
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmtrain.distributed.failures import Failures, not_exchanged
from lmtrain.distributed.links import Links
from lmtrain.errors import UserError
from lmtrain.progress import watched

T = TypeVar("T")

LARGE = 1 << 20  # numbers in a gradient that is summed by itself, on a CPU
STEP_TIMEOUT = timedelta(minutes=10)  # for what all processes do at about the same time; else they meet before


@dataclass(frozen=True)
class Columns:
    """The columns first <= b < last of `total`."""

    first: int
    last: int
    total: int

    @property
    def share(self) -> float:
        return (self.last - self.first) / self.total

    def of(self, tensor: Tensor, axis: int) -> Tensor:
        """Those columns of a tensor with all of them along `axis`."""
        return tensor.narrow(axis, self.first, self.last - self.first)


class Group:
    """One process alone.

    rank, size   which of how many processes this is
    local_rank   which of those on this machine
    """

    rank = local_rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def columns(self, total: int) -> Columns:
        """The columns of this process; each has one at the least where there are as many as processes."""
        return Columns(self.rank * total // self.size, (self.rank + 1) * total // self.size, total)

    def led(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, where alone it is done; a UserError that it raises is raised in all."""
        return work()

    def take(self, *tensors: Tensor) -> None:
        """Puts into each of the tensors what it holds in the first process, bit for bit."""

    def seconds(self, own: float) -> float:
        """The time by the clock of the first process."""
        return own

    def most(self, *numbers: int) -> tuple[int, ...]:
        """Of each number the largest that a process has."""
        return numbers

    def early_sums(self) -> AbstractContextManager[None]:
        """Around a backward pass, before `sum_gradients`: the sums of large gradients begin as soon as it has made them."""
        return nullcontext()

    def sum_gradients(self, parameters: Iterable[nn.Parameter], *numbers: Tensor) -> tuple[Tensor, ...]:
        """Makes each gradient the sum of those of all processes, the same bits everywhere; returns the sums of `numbers`."""
        return numbers

    def whole(self, tensor: Tensor, columns: Columns, axis: int) -> Tensor:
        """All columns in their order, from the own ones."""
        return tensor

    def everyones(self, own: T) -> list[T]:
        """What each process gives, in their order."""
        return [own]

    def one_first(self) -> AbstractContextManager[None]:
        """Within it, one process of each machine works before the others do: what it leaves on the disk is there for them."""
        return nullcontext()


ALONE = Group()


class Processes(Group):
    """N processes, whose default group `torch.distributed` has been set up.

    links     by which they meet, where some have to wait for others
    failures  what they tell each other where one cannot go on
    """

    def __init__(self, local_rank: int, links: Links, failures: Failures) -> None:
        self.rank, self.size, self.local_rank = dist.get_rank(), dist.get_world_size(), local_rank
        self.links, self.failures = links, failures
        self._objects: Any = dist.new_group(backend="gloo", timeout=STEP_TIMEOUT)
        self._large: list[nn.Parameter] = []  # whose sums begin within the backward pass, in this order in all processes
        self._begun: dict[nn.Parameter, dist.Work] = {}
        self._absent: set[nn.Parameter] = set()  # those of them of which this process has no gradient

    def led(self, work: Callable[[], T]) -> T:
        answer: list[Any] = [None, None]
        if self.leads:
            try:
                answer[0] = work()
            except UserError as error:
                answer[1] = error
        self.links.meet()
        with self._together():
            dist.broadcast_object_list(answer, src=0, group=self._objects)
        if answer[1] is not None:
            raise cast(UserError, answer[1])
        return cast(T, answer[0])

    def everyones(self, own: T) -> list[T]:
        answers: list[Any] = [None] * self.size
        self.links.meet()
        with self._together():
            dist.all_gather_object(answers, own, group=self._objects)
        return answers

    @contextmanager
    def one_first(self) -> Iterator[None]:
        if self.local_rank != 0:
            self.links.meet()
        yield
        if self.local_rank == 0:
            with watched("Waiting for the other machines"):
                self.links.meet()

    def seconds(self, own: float) -> float:
        self.take(clock := torch.tensor(own, dtype=torch.float64))
        return clock.item()

    @torch.no_grad()
    def take(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            with self._together():
                dist.broadcast(sent := tensor.detach().contiguous(), src=0)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)

    def most(self, *numbers: int) -> tuple[int, ...]:
        largest = torch.tensor(numbers)
        with self._together():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    @contextmanager
    def early_sums(self) -> Iterator[None]:
        waiting = [parameter for parameter in self._large if parameter.requires_grad]
        made: set[nn.Parameter] = set()

        def begin(parameter: Tensor) -> None:
            made.add(cast(nn.Parameter, parameter))
            while waiting and waiting[0] in made:
                self._begin_sum(waiting.pop(0))

        hooks = [parameter.register_post_accumulate_grad_hook(begin) for parameter in waiting]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for parameter in waiting:  # a gradient that this process does not have, and those behind it
            self._begin_sum(parameter)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], *numbers: Tensor) -> tuple[Tensor, ...]:
        """One small exchange (numbers, and which process has which gradients), then a sum of each large dense gradient that has
        not begun, one of all other dense ones, flattened, and one of each sparse one, of which only the rows in use travel.

        What is summed by itself is so at every step, begun early or not: how numbers are put together decides their last bits.
        """
        learnt = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in learnt:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
        small = torch.tensor([number.item() for number in numbers] + [self._code(p) for p in learnt], dtype=torch.float64)
        everyones_NX = self._gathered(small)
        sums = everyones_NX[:, : len(numbers)].sum(0)
        codes = dict(zip(learnt, everyones_NX[:, len(numbers) :].long().T.tolist(), strict=True))
        dense = [parameter for parameter in learnt if DENSE in codes[parameter]]
        self._large = [parameter for parameter in reversed(dense) if _is_large(parameter) and max(codes[parameter]) == DENSE]
        for parameter in self._large:
            if parameter not in self._begun:
                self._begin_sum(parameter)
        if rest := [parameter for parameter in dense if parameter not in self._begun]:
            self._sum_dense(rest)
        for parameter in learnt:
            if max(codes[parameter]) >= SPARSE and DENSE not in codes[parameter]:
                self._sum_sparse(parameter, [max(0, code - SPARSE) for code in codes[parameter]])
        for parameter, work in self._begun.items():
            with self._together():
                work.wait()
            if max(codes[parameter]) == NONE:
                parameter.grad = None
        self._begun.clear()
        self._absent.clear()
        return tuple(total.to(number) for total, number in zip(sums, numbers, strict=True))

    def _begin_sum(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            self._absent.add(parameter)
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = parameter.grad.to_dense().contiguous()
        with self._together():
            self._begun[parameter] = dist.all_reduce(parameter.grad, async_op=True)

    def _code(self, parameter: nn.Parameter) -> int:
        """What there is of its gradient, for the others to know."""
        grad = parameter.grad
        if grad is None or parameter in self._absent:
            return NONE
        return SPARSE + grad.values().shape[0] if grad.is_sparse else DENSE

    def _sum_dense(self, parameters: Sequence[nn.Parameter]) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        with self._together():
            dist.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in grads])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _sum_sparse(self, parameter: nn.Parameter, counts_N: Sequence[int]) -> None:
        """Rows of all processes one below the other; those of one word then add up, in the order of the processes."""
        most, (_, *rest) = max(counts_N), parameter.shape
        rows_M = torch.zeros(most, dtype=torch.int64, device=parameter.device)
        values_ME = torch.zeros(most, *rest, dtype=parameter.dtype, device=parameter.device)
        if parameter.grad is not None:
            count = counts_N[self.rank]
            rows_M[:count], values_ME[:count] = parameter.grad.indices()[0], parameter.grad.values()
        all_rows, all_values = self._gathered(rows_M), self._gathered(values_ME)
        rows = torch.cat([rows[:count] for rows, count in zip(all_rows, counts_N, strict=True)])
        values = torch.cat([part[:count] for part, count in zip(all_values, counts_N, strict=True)])
        parameter.grad = torch.sparse_coo_tensor(rows[None], values, parameter.shape).coalesce()

    def whole(self, tensor: Tensor, columns: Columns, axis: int) -> Tensor:
        counts = [self._columns_of(rank, columns.total) for rank in range(self.size)]
        own = tensor.detach().cpu().movedim(axis, 0)
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = self._gathered(padded)
        joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).movedim(0, axis)
        return joined.contiguous().to(tensor.device)

    def _columns_of(self, rank: int, total: int) -> int:
        return (rank + 1) * total // self.size - rank * total // self.size

    def _gathered(self, tensor: Tensor) -> Tensor:
        """Those of all processes, of one shape, along a new first axis."""
        everyones = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._together():
            dist.all_gather(everyones, tensor.contiguous())
        return torch.stack(everyones)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around whatever needs all processes: where one is gone, why it went, in its words or in ours."""
        try:
            yield
        except RuntimeError as error:
            raise self.failures.of_another(not_exchanged(self.rank, self.size, error)) from error


NONE, DENSE, SPARSE = 0, 1, 2  # what a process has of a gradient; if it is sparse, the number of its rows is added


def _is_large(parameter: nn.Parameter) -> bool:
    return parameter.numel() >= LARGE and not parameter.is_cuda
