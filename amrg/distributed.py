"""The processes of a run: who is there, how they meet, and what they tell each other."""

import atexit
import os
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

_TEARDOWN_SECONDS = 0.2  # seconds

# ZeRO 3 and the exchange of sharded banks call what torch has renamed.
warnings.filterwarnings(
    "ignore", r"`torch\.distributed\._?(all_gather|reduce_scatter)_\w+` is (deprecated|a private)", FutureWarning
)


def rank() -> int:
    """Return this process's rank; 0 without a launcher."""
    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of ranks; 1 without a launcher."""
    return distributed.get_world_size() if distributed.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Wait until all ranks are here."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.barrier()


def device() -> torch.device:
    """This rank's device: its GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def init_process_group() -> None:
    """Join the process group (once): alone, or with the other ranks that a launcher has started."""
    if distributed.is_initialized():
        return
    backend = "gloo"
    if device().type == "cuda":
        torch.cuda.set_device(device())
        backend = "nccl"
    ranks, me = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = ranks == int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
    if local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    timeout = timedelta(minutes=30)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    if ranks == 1:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1, timeout=timeout)
    elif local:
        # The ranks of one machine meet in a file: no port to collide on, nothing listening beyond the loopback.
        rendezvous = f"file://{_rendezvous()}"
        distributed.init_process_group(backend, init_method=rendezvous, rank=me, world_size=ranks, timeout=timeout)
    else:
        distributed.init_process_group(backend, timeout=timeout)
    atexit.register(_leave)


def _rendezvous() -> Path:
    """A file name that the ranks of one launcher, and no others, agree on: its process id and when it started."""
    parent = os.getppid()
    born = Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return Path(tempfile.gettempdir()) / f"amrg-{os.getuid()}-{parent}-{born}-{os.environ.get('MASTER_PORT', '0')}"


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
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device())
    distributed.all_reduce(packed)
    return dict(zip(values, (packed / world_size()).tolist(), strict=True))


def all_gather_list(local: list[Any]) -> list[Any]:
    """The lists of all ranks joined in rank order, on every rank."""
    if world_size() == 1:
        return local
    gathered: list[Any] = [None] * world_size()
    distributed.all_gather_object(gathered, local)
    return [item for part in gathered for item in part]
