"""A recurrence over a packed sequence (`torch.nn.utils.rnn.PackedSequence`): streams of different lengths, the longest first.

Its rows lie step by step, and each step has the streams that have not ended. A kernel reads [steps, streams], and in each
call it first copies the recurrent weight into the order of its loops, which takes as long as multiplying some dozen rows. So
runs of steps with the same streams are joined to segments where that costs less than a call: a stream that ends before the
others of its segment is followed by steps which nobody reads, and the rows are copied to their places. Such steps change
nothing and have no gradient: a cell that is read at the end is held by its gates (input 0, forget 1). Each stream begins at
the first step of its segment, in both directions. Where states have no bound, runs stay apart: a gradient of zero times an
infinite state is not zero.

    legend   N rows of a packed sequence · S steps of a segment · B streams that it has · M = S x B · H hidden · Z gates x H
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

State = tuple[Tensor, ...]  # [B, H] each, h first
Recur = Callable[[Tensor, State], tuple[Tensor, ...]]
"""(projected_SBZ, state) -> outputs [S, B, H] and the states at their end"""

Run = tuple[int, int]
"""Streams, and the steps that have them"""

# What costs time beside the products, in rows of a product [1, H] x [H, Z]; measured with AVX2.
LAYING_OUT = 64.0  # the weight, in each call
CALLING = 1150.0  # / H, squared: the call itself
COPYING = 50.0  # / H: one row to its place


@dataclass(frozen=True)
class Segment:
    """Runs of a packed sequence that are read in one call; each has fewer streams than the one before."""

    runs: tuple[Run, ...]

    @property
    def num_streams(self) -> int:
        return self.runs[0][0]

    @property
    def num_rows(self) -> int:
        return sum(streams * steps for streams, steps in self.runs)

    @cached_property
    def streams(self) -> Tensor:
        """How many each step has, [S]."""
        streams, steps = torch.tensor(self.runs, device="cpu").unbind(1)
        return streams.repeat_interleave(steps)

    @cached_property
    def lengths(self) -> Tensor:
        """The steps that each stream has here, [B]."""
        return (self.streams[:, None] > torch.arange(self.num_streams, device="cpu")).sum(0)

    def places(self, *, backwards: bool) -> Tensor:
        """Where each row [N] lies among [S x B]; backwards, each stream's last step comes first."""
        streams_S, B = self.streams, self.num_streams
        step_N = torch.arange(len(streams_S), device="cpu").repeat_interleave(streams_S)
        first_N = (streams_S.cumsum(0) - streams_S).repeat_interleave(streams_S)
        stream_N = torch.arange(len(step_N), device="cpu") - first_N
        return (self.lengths[stream_N] - 1 - step_N if backwards else step_N) * B + stream_N

    def run(self, recur: Recur, projected_NZ: Tensor, state: State, held_Z: Tensor, *, backwards: bool) -> State:
        """The outputs [N, H], and the state of each stream behind its own steps."""
        if len(self.runs) == 1:
            projected_SBZ = projected_NZ.unflatten(0, (-1, self.num_streams))
            output_SBH, *after = recur(projected_SBZ.flip(0) if backwards else projected_SBZ, state)
            return (output_SBH.flip(0) if backwards else output_SBH).flatten(0, 1), *after
        S, B, device = len(self.streams), self.num_streams, projected_NZ.device
        places_N = self.places(backwards=backwards).to(device)
        projected_MZ = held_Z.expand(S * B, -1).index_copy(0, places_N, projected_NZ)
        projected_SBZ = projected_MZ.unflatten(0, (S, B))
        output_SBH, final_BH, *others = recur(projected_SBZ, state)
        output_MH = output_SBH.flatten(0, 1)
        last_B = ((self.lengths - 1) * B + torch.arange(B, device="cpu")).to(device)
        return output_MH.index_select(0, places_N), output_MH.index_select(0, last_B).to(final_BH.dtype), *others


def segments(streams_T: Sequence[int], hidden_size: int, *, joined: bool = True) -> list[Segment]:
    """Cuts the runs of steps, of which each has so many streams, into the segments that cost least, or each from the next."""
    runs = [(streams, len(list(same))) for streams, same in groupby(streams_T)]
    if not joined:
        return [Segment((run,)) for run in runs]
    call, copying = LAYING_OUT + (CALLING / hidden_size) ** 2, COPYING / hidden_size
    steps = [0, *accumulate(steps for _, steps in runs)]
    rows = [0, *accumulate(streams * steps for streams, steps in runs)]
    costs, starts = [0.0], [0]  # of the runs before each place, and where their last segment starts
    for end in range(1, len(runs) + 1):
        cost, start = costs[-1] + call, end - 1
        for earlier in range(end - 2, -1, -1):
            num_rows = rows[end] - rows[earlier]
            filled = runs[earlier][0] * (steps[end] - steps[earlier]) - num_rows
            if filled > call * (end - earlier):
                break
            cost, start = min((cost, start), (costs[earlier] + call + filled + copying * num_rows, earlier))
        costs.append(cost)
        starts.append(start)
    found: list[Segment] = []
    end = len(runs)
    while end:
        found.insert(0, Segment(tuple(runs[starts[end] : end])))
        end = starts[end]
    return found


def run_packed(
    recur: Recur, projected_NZ: Tensor, state: State, parts: Sequence[Segment], held_Z: Tensor, *, backwards: bool
) -> tuple[Tensor, ...]:
    """The outputs [N, H] and the states [B, H] in which the streams end; backwards, in which they are behind their first step.

    held_Z   projections with which a step leaves all states but h as they are
    """
    rows = projected_NZ.split([segment.num_rows for segment in parts])
    if backwards:
        return _backwards(recur, list(zip(parts, rows, strict=True)), state, held_Z)
    outputs: list[Tensor] = []
    ended: list[State] = []
    for segment, part_NZ in zip(parts, rows, strict=True):
        if segment.num_streams < len(state[0]):
            ended.insert(0, tuple(state_BH[segment.num_streams :] for state_BH in state))
            state = tuple(state_BH[: segment.num_streams] for state_BH in state)
        output_NH, *after = segment.run(recur, part_NZ, state, held_Z, backwards=False)
        outputs.append(output_NH)
        state = tuple(after)
    return torch.cat(outputs), *_joined(state, *ended)


def _backwards(recur: Recur, parts: list[tuple[Segment, Tensor]], state: State, held_Z: Tensor) -> tuple[Tensor, ...]:
    """From the last step to the first; a stream begins, with its own state, in the segment of its last step."""
    outputs: list[Tensor] = []
    begun: State = tuple(state_BH[:0] for state_BH in state)
    for segment, part_NZ in reversed(parts):
        waiting = tuple(state_BH[len(own) : segment.num_streams] for state_BH, own in zip(state, begun, strict=True))
        output_NH, *after = segment.run(recur, part_NZ, tuple(_joined(begun, waiting)), held_Z, backwards=True)
        outputs.insert(0, output_NH)
        begun = tuple(after)
    return torch.cat(outputs), *begun


def _joined(*states: State) -> Iterator[Tensor]:
    return (torch.cat(parts) for parts in zip(*states, strict=True))
