"""Counted transfers between the ranks that share a bank: tensors of any kind go as bytes, in one message.

What is counted is the payload that a rank hands over for *other* ranks: of a gather its own contribution, once for each
of the others; of a swap what each of the others gets; of a ring what the next one gets. Every tensor is padded to a
multiple of ``ALIGN`` bytes.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

ALIGN = 8  # a tensor cut out of a message is aligned for every dtype

TensorSpec = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor that is to come


def padded_bytes(spec: TensorSpec) -> int:
    """Bytes that a tensor takes in a message."""
    shape, dtype = spec
    return -(-torch.Size(shape).numel() * dtype.itemsize // ALIGN) * ALIGN


def spec_of(tensor: Tensor) -> TensorSpec:
    return tuple(tensor.shape), tensor.dtype


class CommGroup:
    """The ranks of one process group, and what this rank has sent to the others.

    Args:
        group: of torch.distributed; None is the group of all ranks.

    Attributes:
        rank, size: of this rank in the group, and of the group.
        sent: bytes handed over for other ranks so far.
        total_bytes_sent: the same, of all exchanges of this process.
    """

    total_bytes_sent = 0

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.bytes_sent = 0

    def global_rank(self, rank: int) -> int:
        """The number among all ranks of a rank of this group."""
        return rank if self.group is None else distributed.get_global_rank(self.group, rank)

    def _count(self, sent: int) -> None:
        self.bytes_sent += sent
        CommGroup.total_bytes_sent += sent

    def all_gather_ints(self, mine: Sequence[int], device: torch.device) -> list[list[int]]:
        """Some whole numbers of every rank, equally many on each."""
        packed = torch.tensor(mine, dtype=torch.int64, device=device)
        out = packed.new_empty(self.size * len(mine))
        distributed.all_gather_into_tensor(out, packed, group=self.group)
        self._count((self.size - 1) * packed.nbytes)
        return out.view(self.size, -1).tolist()

    def all_gather(self, mine: Sequence[Tensor], specs: Sequence[Sequence[TensorSpec]]) -> list[list[Tensor]]:
        """The tensors of every rank, on every rank; ``specs[r]`` says what rank r gives."""
        length = max(sum(map(padded_bytes, theirs)) for theirs in specs)
        message = _pack(mine, length)
        out = message.new_empty(self.size * length)
        distributed.all_gather_into_tensor(out, message, group=self.group)
        self._count((self.size - 1) * length)
        return [_unpack(out[r * length :], theirs) for r, theirs in enumerate(specs)]

    def all_to_all(self, mine: Sequence[Sequence[Tensor]], specs: Sequence[Sequence[TensorSpec]]) -> list[list[Tensor]]:
        """Give ``mine[r]`` to rank r; get what ``specs[r]`` says from each rank r."""
        messages = [_pack(tensors) for tensors in mine]
        sizes = [sum(map(padded_bytes, theirs)) for theirs in specs]
        out = messages[0].new_empty(sum(sizes))
        given = [len(message) for message in messages]
        distributed.all_to_all_single(out, torch.cat(messages), sizes, given, group=self.group)
        self._count(sum(given) - given[self.rank])
        starts = itertools.accumulate(sizes, initial=0)
        return [_unpack(out[start:], theirs) for start, theirs in zip(starts, specs, strict=False)]

    def ring_steps(
        self, mine: Sequence[Tensor], specs: Sequence[Sequence[TensorSpec]]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """The tensors of every rank in turn, own first, passed round the ring: (whose, tensors).

        The next ones travel while the caller works on these.
        """
        current = _pack(mine)
        for turn in range(self.size):
            owner = (self.rank - turn) % self.size
            arriving = (owner - 1) % self.size
            last = turn == self.size - 1
            receive_buffer = current.new_empty(0 if last else sum(map(padded_bytes, specs[arriving])))
            pending = [] if last else self._isend_irecv(current, receive_buffer)
            yield owner, _unpack(current, specs[owner])
            for work in pending:
                work.wait()
            current = receive_buffer

    def _isend_irecv(self, message: Tensor, coming: Tensor) -> list[Any]:
        """Start sending to the next rank and receiving from the one before; empty messages are not sent."""
        after, before = (self.global_rank((self.rank + step) % self.size) for step in (1, -1))
        transfers = []
        if len(message):
            transfers.append(distributed.P2POp(distributed.isend, message, after, self.group))
        if len(coming):
            transfers.append(distributed.P2POp(distributed.irecv, coming, before, self.group))
        self._count(len(message))
        return distributed.batch_isend_irecv(transfers) if transfers else []


def _pack(tensors: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Tensors as one message, filled up to ``length`` bytes."""
    sizes = [padded_bytes(spec_of(tensor)) for tensor in tensors]
    length = sum(sizes) if length is None else length
    message = torch.zeros(length, dtype=torch.uint8, device=tensors[0].device)
    for start, tensor in zip(itertools.accumulate(sizes, initial=0), tensors, strict=False):
        message[start : start + tensor.nbytes] = tensor.detach().contiguous().flatten().view(torch.uint8)
    return message


def _unpack(message: Tensor, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """The tensors at the start of a message, as views of it."""
    tensors, start = [], 0
    for shape, dtype in specs:
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(message[start : start + size].view(dtype).view(shape))
        start += padded_bytes((shape, dtype))
    return tensors
