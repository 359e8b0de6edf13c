"""A recurrence over a packed sequence (`torch.nn.utils.rnn.PackedSequence`): streams of different lengths, the longest first.

Its rows lie step by step, and each step has the streams that have not ended. A kernel reads [steps, streams] and lays out the
recurrent weight anew in each call, which takes as long as multiplying some dozen rows. So the steps are cut into segments
that lose less than that by filling up: in a segment, a stream that ends before the others is followed by steps which nobody
reads. These change nothing and have no gradient: a cell that is read at the end is held by its gates (input 0, forget 1), and
other states are forgotten. Each stream begins at the first step of its segment, in both directions.

    legend   N rows of a packed sequence · S steps of a segment · B streams that it has · Z gates x H
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

State = tuple[Tensor, ...]  # [B, H] each, h first
Recur = Callable[[Tensor, State, Tensor | None], tuple[Tensor, ...]]
"""(projected_SBZ, state, keep_SB) -> outputs [S, B, H] and the states at their end"""

WORTH_A_CALL = 64  # rows of filling up that take as long as one more call


@dataclass(frozen=True)
class Segment:
    """Some steps of a packed sequence: how many streams each has."""

    streams_S: tuple[int, ...]

    @property
    def num_streams(self) -> int:
        return self.streams_S[0]

    @property
    def num_rows(self) -> int:
        return sum(self.streams_S)

    @property
    def is_full(self) -> bool:
        return self.streams_S[-1] == self.num_streams

    @cached_property
    def lengths(self) -> Tensor:
        """The steps that each stream has here, [B]."""
        return (torch.tensor(self.streams_S)[:, None] > torch.arange(self.num_streams)).sum(0)

    def places(self, *, backwards: bool) -> Tensor:
        """Where each row [N] lies among [S x B]; backwards, each stream's last step comes first."""
        streams_S, B = torch.tensor(self.streams_S), self.num_streams
        step_N = torch.arange(len(streams_S)).repeat_interleave(streams_S)
        stream_N = torch.arange(self.num_rows) - (streams_S.cumsum(0) - streams_S).repeat_interleave(streams_S)
        return ((self.lengths[stream_N] - 1 - step_N) if backwards else step_N) * B + stream_N

    def run(self, recur: Recur, projected_NZ: Tensor, state: State, held_Z: Tensor | None, *, backwards: bool) -> State:
        """The outputs [N, H], and the state of each stream behind its own steps."""
        S, B, device = len(self.streams_S), self.num_streams, projected_NZ.device
        if self.is_full:
            projected_SBZ = projected_NZ.unflatten(0, (S, B))
            output_SBH, *after = recur(projected_SBZ.flip(0) if backwards else projected_SBZ, state, None)
            return (output_SBH.flip(0) if backwards else output_SBH).flatten(0, 1), *after
        places_N = self.places(backwards=backwards).to(device)
        filling_MZ = projected_NZ.new_zeros(S * B, projected_NZ.shape[1])
        keep_SB = None
        if held_Z is None:
            keep_SB = (torch.arange(S)[:, None] < self.lengths).to(device, projected_NZ.dtype)
        else:
            filling_MZ += held_Z
        projected_SBZ = filling_MZ.index_copy(0, places_N, projected_NZ).unflatten(0, (S, B))
        output_SBH, final_BH, *others = recur(projected_SBZ, state, keep_SB)
        output_MH = output_SBH.flatten(0, 1)
        last_B = ((self.lengths - 1) * B + torch.arange(B)).to(device)
        return output_MH.index_select(0, places_N), output_MH.index_select(0, last_B).to(final_BH.dtype), *others


def segments(streams_T: Sequence[int]) -> list[Segment]:
    """Cuts the steps, of which each has so many streams, where filling up would cost more than a call."""
    found: list[list[int]] = []
    filled = 0
    for streams in streams_T:
        filled += (found[-1][0] - streams) if found else 0
        if not found or filled > WORTH_A_CALL:
            found.append([])
            filled = 0
        found[-1].append(streams)
    return [Segment(tuple(part)) for part in found]


def run_packed(
    recur: Recur, projected_NZ: Tensor, state: State, parts: Sequence[Segment], held_Z: Tensor | None, *, backwards: bool
) -> tuple[Tensor, ...]:
    """The outputs [N, H] and the states [B, H] in which the streams end; backwards, in which they are behind their first step.

    held_Z   projections with which a step leaves all states but h as they are; None where there is no other
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


def _backwards(recur: Recur, parts: list[tuple[Segment, Tensor]], state: State, held_Z: Tensor | None) -> tuple[Tensor, ...]:
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
