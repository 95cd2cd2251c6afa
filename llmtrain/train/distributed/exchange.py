"""Move matrices whose rows are spread over ranks to one owner each, and back.

A rank has the rows `own_rows(rows, rank, ranks)` of every matrix: equal chunks, the last ones
shorter or empty, as `torch.chunk` and FSDP2 cut them. An exchange sends what every owner needs in
one collective, so that no rank ever holds more than the matrices that it owns.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.train.distributed.replica import Replica


def own_rows(rows: int, rank: int, ranks: int) -> slice:
    """Return the rows of a matrix that a rank has."""
    chunk = -(-rows // ranks)
    return slice(min(rows, rank * chunk), min(rows, (rank + 1) * chunk))


def balanced_owners(costs: Sequence[float], ranks: int) -> list[int]:
    """Return an owner for each cost, so that the ranks' sums are about equal.

    The dearest is given first, to the rank with the least (Graham 1969: at most 4/3 of the best).
    """
    sums = [(0.0, rank) for rank in range(ranks)]
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        total, rank = heapq.heappop(sums)
        owners[index] = rank
        heapq.heappush(sums, (total + costs[index], rank))
    return owners


@dataclass(slots=True)
class Arriving:
    """Tensors on their way to this rank, one after the other in `buffer`."""

    buffer: Tensor
    work: dist.Work
    sent: Tensor  # kept until it has arrived

    def wait(self) -> Tensor:
        """Return the buffer, filled."""
        self.work.wait()
        return self.buffer


@dataclass(frozen=True, slots=True)
class Round:
    """The matrices that each rank of a replica owns in one exchange, by their shapes."""

    replica: Replica
    shapes: tuple[tuple[torch.Size, ...], ...]  # by rank
    dtype: torch.dtype
    device: torch.device

    @property
    def owned(self) -> tuple[torch.Size, ...]:
        """The shapes of this rank's matrices."""
        return self.shapes[self.replica.rank]

    def to_owners(self, pieces: Sequence[Sequence[Tensor]]) -> Arriving:
        """Send this rank's rows of every rank's matrices to their owners."""
        return self._exchange([piece for each in pieces for piece in each], to_owners=True)

    def assembled(self, arriving: Arriving) -> list[Tensor]:
        """Return this rank's matrices, from what all ranks sent."""
        size = self.replica.size
        buffer, sources = arriving.wait(), range(size)
        received = torch.split(buffer, [self._elements(self.owned, rank) for rank in sources])
        matrices: list[list[Tensor]] = [[] for _ in self.owned]
        for rank, part in zip(sources, received, strict=True):
            counts = [_rows_elements(shape, rank, size) for shape in self.owned]
            for parts, piece in zip(matrices, torch.split(part, counts), strict=True):
                parts.append(piece)
        return [
            torch.cat(parts).view(shape) for parts, shape in zip(matrices, self.owned, strict=True)
        ]

    def to_shards(self, matrices: Sequence[Tensor]) -> Arriving:
        """Send to every rank its rows of this rank's matrices."""
        ranks = range(self.replica.size)
        pieces = [
            matrix[own_rows(len(matrix), rank, len(ranks))] for rank in ranks for matrix in matrices
        ]
        return self._exchange(pieces, to_owners=False)

    def shards(self, arriving: Arriving) -> list[list[Tensor]]:
        """Return this rank's rows of every rank's matrices, from what their owners sent."""
        rank, size = self.replica.rank, self.replica.size
        buffer, start, found = arriving.wait(), 0, []
        for shapes in self.shapes:
            rows: list[Tensor] = []
            for shape in shapes:
                end = start + _rows_elements(shape, rank, size)
                rows.append(buffer[start:end].view(-1, *shape[1:]))
                start = end
            found.append(rows)
        return found

    def _exchange(self, pieces: Sequence[Tensor], *, to_owners: bool) -> Arriving:
        ranks, rank = range(self.replica.size), self.replica.rank
        by_owner = [self._elements(self.shapes[owner], rank) for owner in ranks]
        by_shard = [self._elements(self.owned, other) for other in ranks]
        counts, expected = (by_owner, by_shard) if to_owners else (by_shard, by_owner)
        none = torch.empty(0, dtype=self.dtype, device=self.device)
        sent = torch.cat([none, *(piece.reshape(-1) for piece in pieces)])
        buffer = sent.new_empty(sum(expected))
        width = sent.element_size()
        # As bytes: not every backend knows every type.
        work = dist.all_to_all_single(
            buffer.view(torch.uint8),
            sent.view(torch.uint8),
            [width * count for count in expected],
            [width * count for count in counts],
            group=self.replica.group,
            async_op=True,
        )
        assert work is not None
        return Arriving(buffer, work, sent)

    def _elements(self, shapes: Sequence[torch.Size], rank: int) -> int:
        return sum(_rows_elements(shape, rank, self.replica.size) for shape in shapes)


def _rows_elements(shape: torch.Size, rank: int, ranks: int) -> int:
    rows = own_rows(shape[0], rank, ranks)
    return math.prod((rows.stop - rows.start, *shape[1:]))
