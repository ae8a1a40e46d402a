"""The processes of a run: who is there, how they meet, and what they tell each other."""

import atexit
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from amrg.errors import UserError
from amrg.launcher import Deadline, check_launcher, is_port_answering, listen_for_ranks

_TEARDOWN_SECONDS = 0.2  # seconds
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)

# ZeRO 3 and the exchange of sharded banks call what torch has renamed.
warnings.filterwarnings(
    "ignore", r"`torch\.distributed\._?(all_gather|reduce_scatter)_\w+` is (deprecated|a private)", FutureWarning
)


def global_rank() -> int:
    """Return this process's rank; 0 without a launcher."""
    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of ranks; 1 without a launcher."""
    return distributed.get_world_size() if distributed.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class TensorGroups:
    """Groups of ranks that train one model together (``tensor_groups``).

    Attributes:
        size: ranks that each hold a part of a language model and train on the same samples.
        tensor: these ranks, of which this is one; None: each rank holds the whole model.
        data: the ranks that hold the same part as this one, each with other samples.
    """

    size: int = 1
    tensor: Any = None
    data: Any = None

    @property
    def part(self) -> int:
        """Number of the part that this rank holds."""
        return global_rank() % self.size


_GROUPS = [TensorGroups()]


def current_groups() -> TensorGroups:
    """Return the groups of the step that runs."""
    return _GROUPS[-1]


def data_parallel_rank() -> int:
    """Return the number of this rank among those that train on different samples."""
    return global_rank() // current_groups().size


def data_parallel_size() -> int:
    """Return the number of ranks that train on different samples: of one, or of one of each tensor group."""
    return world_size() // current_groups().size


@contextmanager
def tensor_groups(size: int) -> Iterator[None]:
    """Within the block each ``size`` successive ranks hold one language model. All ranks must enter it together."""
    if size == 1:
        yield
        return
    ranks = list(range(world_size()))
    tensor, _ = distributed.new_subgroups_by_enumeration([ranks[i : i + size] for i in range(0, len(ranks), size)])
    data, _ = distributed.new_subgroups_by_enumeration([ranks[i::size] for i in range(size)])
    _GROUPS.append(TensorGroups(size, tensor, data))
    try:
        yield
    finally:
        _GROUPS.pop()


@contextmanager
def local_ranks_in_turn() -> Iterator[None]:
    """Within the block the ranks of a machine come one after the other. Every rank must enter it."""
    local, error = int(os.environ.get("LOCAL_RANK", "0")), None
    for turn in range(max(all_gather_list([local])) + 1):
        if turn == local:
            try:
                yield
            except UserError as fault:
                error = fault  # not before the others have had their turn: they would wait for this rank
        barrier()
    if error is not None:
        raise error


def barrier() -> None:
    """Wait until all ranks are here."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.barrier()


def local_device() -> torch.device:
    """This rank's device: its GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Some launchers show each rank its own GPU alone.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def init_process_group() -> None:
    """Join the process group (once): alone, or with the other ranks that a launcher has started.

    Raises:
        UserError: the launcher's environment is not whole, or the other ranks do not come.
    """
    if distributed.is_initialized():
        return
    check_launcher()
    backend = "gloo"
    if local_device().type == "cuda":
        torch.cuda.set_device(local_device())
        backend = "nccl"
    ranks, me = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = ranks == int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
    if local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    store = distributed.HashStore() if ranks == 1 else _rendezvous(me, ranks)
    distributed.init_process_group(backend, store=store, rank=me, world_size=ranks, timeout=_COLLECTIVE_TIMEOUT)
    atexit.register(_leave)


def _rendezvous(me: int, ranks: int) -> distributed.Store:
    """Return the store at MASTER_ADDR and MASTER_PORT that all ranks have reached."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", "29500"))
    # torchrun itself listens there; the ranks that it starts again after a failure shall not read what the dead wrote.
    listens = me == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    deadline = Deadline(f"rank {me} of {ranks} at MASTER_ADDR {address}, MASTER_PORT {port}")
    try:
        own = listen_for_ranks(address, port) if listens else None
        if not listens:
            deadline.wait(lambda: is_port_answering(address, port), "nobody listens there")
        store = distributed.PrefixStore(f"amrg/{attempt}", _open_store(address, port, own, deadline))
        store.add("ranks", 1)
        deadline.wait(lambda: store.add("ranks", 0) >= ranks, "the other ranks did not come")
        store.set_timeout(_COLLECTIVE_TIMEOUT)
    except (OSError, distributed.DistError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
        raise UserError(
            f"rank {me} of {ranks} cannot meet the others at MASTER_ADDR {address}, MASTER_PORT {port}: {reason}; "
            "choose another port (--master_port) if another run has it"
        ) from None
    return store


def _open_store(address: str, port: int, own: socket.socket | None, deadline: Deadline) -> distributed.TCPStore:
    """Open the store at an address: on a socket of this process's own, or as a client."""
    opened: list[distributed.TCPStore | Exception] = []

    def open_it() -> None:
        try:
            opened.append(
                distributed.TCPStore(
                    address, port, is_master=own is not None, wait_for_workers=False,
                    timeout=timedelta(seconds=deadline.left), master_listen_fd=None if own is None else own.detach(),
                )
            )  # fmt: skip
        except Exception as error:  # raised below, where it is waited for
            opened.append(error)

    # In a thread, because torch's client has no limit of time where somebody accepts connections and never answers.
    threading.Thread(target=open_it, daemon=True).start()
    deadline.wait(lambda: bool(opened), "who listens there does not answer")
    if isinstance(opened[0], Exception):
        raise opened[0]
    return opened[0]


def _leave() -> None:
    if distributed.is_initialized():
        alone = distributed.get_world_size() == 1
        distributed.destroy_process_group()
        if not alone:
            # Gloo's threads let go of the last collective's tensors a moment after it is done, and need the interpreter
            # for it: one that is gone by then aborts the process.
            time.sleep(_TEARDOWN_SECONDS)


def all_reduce_mean(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over the ranks (float64)."""
    if world_size() == 1:
        return values
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=local_device())
    distributed.all_reduce(packed)
    return dict(zip(values, (packed / world_size()).tolist(), strict=True))


def all_gather_list(local: list[Any]) -> list[Any]:
    """The lists of all ranks joined in rank order, on every rank."""
    if world_size() == 1:
        return local
    gathered: list[Any] = [None] * world_size()
    distributed.all_gather_object(gathered, local)
    return [item for part in gathered for item in part]
