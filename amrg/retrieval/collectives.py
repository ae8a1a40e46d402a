"""Collectives that count the bytes they send. Tensors of any dtype are packed into one message of bytes.

The count is the payload that a rank sends to *other* ranks. An all-gather counts the rank's own message once per other
rank, an all-to-all counts the messages to the others, and a ring step counts the message to the next rank. Every tensor
is padded to a multiple of ``ALIGN`` bytes.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, distributed

ALIGN = 16  # bytes; a view of a message is then aligned for every dtype, and for the 16-byte loads of the kernels

TensorSpec = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor to receive


def padded_message_bytes(spec: TensorSpec) -> int:
    """Return the size of a tensor in a message, in bytes."""
    shape, dtype = spec
    return -(-torch.Size(shape).numel() * dtype.itemsize // ALIGN) * ALIGN


def tensor_spec_of(tensor: Tensor) -> TensorSpec:
    """Return shape and dtype of a tensor."""
    return tuple(tensor.shape), tensor.dtype


class CommGroup:
    """Collectives of one process group, with a count of the bytes that this rank sent to the others.

    Args:
        group: process group of torch.distributed; None is the group of all ranks.

    Attributes:
        rank: this rank's number in the group.
        size: number of ranks in the group.
        bytes_sent: bytes sent to other ranks so far.
        total_bytes_sent: bytes sent by all groups of this process.
    """

    total_bytes_sent = 0

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.bytes_sent = 0

    def global_rank(self, rank: int) -> int:
        """Return the global number of a rank of this group."""
        return rank if self.group is None else distributed.get_global_rank(self.group, rank)

    def _count(self, sent: int) -> None:
        self.bytes_sent += sent
        CommGroup.total_bytes_sent += sent

    def all_gather_ints(self, local: Sequence[int], device: torch.device) -> list[list[int]]:
        """Gather integers from every rank, the same number from each: [rank][i]."""
        packed = torch.tensor(local, dtype=torch.int64, device=device)
        out = packed.new_empty(self.size * len(local))
        distributed.all_gather_into_tensor(out, packed, group=self.group)
        self._count((self.size - 1) * packed.nbytes)
        return out.view(self.size, -1).tolist()

    def all_gather(self, local: Sequence[Tensor], specs: Sequence[Sequence[TensorSpec]]) -> list[list[Tensor]]:
        """Gather the tensors of every rank on every rank; ``specs[r]`` describes those of rank r."""
        length = max(sum(map(padded_message_bytes, rank_specs)) for rank_specs in specs)
        message = _pack(local, length)
        out = message.new_empty(self.size * length)
        distributed.all_gather_into_tensor(out, message, group=self.group)
        self._count((self.size - 1) * length)
        return [_unpack(out[r * length :], rank_specs) for r, rank_specs in enumerate(specs)]

    def all_to_all(
        self, outgoing: Sequence[Sequence[Tensor]], specs: Sequence[Sequence[TensorSpec]]
    ) -> list[list[Tensor]]:
        """Send ``outgoing[r]`` to rank r; receive the tensors of ``specs[r]`` from rank r."""
        messages = [_pack(tensors) for tensors in outgoing]
        receive_sizes = [sum(map(padded_message_bytes, rank_specs)) for rank_specs in specs]
        out = messages[0].new_empty(sum(receive_sizes))
        send_sizes = [len(message) for message in messages]
        distributed.all_to_all_single(out, torch.cat(messages), receive_sizes, send_sizes, group=self.group)
        self._count(sum(send_sizes) - send_sizes[self.rank])
        starts = itertools.accumulate(receive_sizes, initial=0)
        return [_unpack(out[start:], rank_specs) for start, rank_specs in zip(starts, specs, strict=False)]

    def ring_steps(
        self, local: Sequence[Tensor], specs: Sequence[Sequence[TensorSpec]]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Pass the tensors of every rank round the ring; yield (rank of the owner, tensors), the local ones first.

        The next message is transferred while the caller works on the current one.
        """
        current = _pack(local)
        for step in range(self.size):
            owner = (self.rank - step) % self.size
            arriving = (owner - 1) % self.size
            last = step == self.size - 1
            receive_buffer = current.new_empty(0 if last else sum(map(padded_message_bytes, specs[arriving])))
            pending = [] if last else self._isend_irecv(current, receive_buffer)
            yield owner, _unpack(current, specs[owner])
            for work in pending:
                work.wait()
            current = receive_buffer

    def _isend_irecv(self, message: Tensor, receive_buffer: Tensor) -> list[distributed.Work]:
        """Start to send to the next rank and to receive from the previous one; empty messages are not sent."""
        following, previous = (self.global_rank((self.rank + step) % self.size) for step in (1, -1))
        transfers = []
        if len(message):
            transfers.append(distributed.P2POp(distributed.isend, message, following, self.group))
        if len(receive_buffer):
            transfers.append(distributed.P2POp(distributed.irecv, receive_buffer, previous, self.group))
        self._count(len(message))
        return distributed.batch_isend_irecv(transfers) if transfers else []


def _pack(tensors: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Pack tensors into one message, padded to ``length`` bytes."""
    sizes = [padded_message_bytes(tensor_spec_of(tensor)) for tensor in tensors]
    length = sum(sizes) if length is None else length
    message = torch.zeros(length, dtype=torch.uint8, device=tensors[0].device)
    for start, tensor in zip(itertools.accumulate(sizes, initial=0), tensors, strict=False):
        message[start : start + tensor.nbytes] = tensor.detach().contiguous().flatten().view(torch.uint8)
    return message


def _unpack(message: Tensor, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """Return the tensors at the start of a message, as views of it."""
    tensors, start = [], 0
    for shape, dtype in specs:
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(message[start : start + size].view(dtype).view(shape))
        start += padded_message_bytes((shape, dtype))
    return tensors
