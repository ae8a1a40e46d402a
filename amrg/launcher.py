"""What a launcher tells a rank through the environment, and how long ranks wait for each other."""

import errno
import os
import re
import socket
import time
from collections.abc import Callable

from amrg.errors import UserError
from amrg.progress import print_on_rank_0

#: Seconds in which all ranks must be there, unless the environment variable of this name says otherwise.
RENDEZVOUS_TIMEOUT, _TIMEOUT_VARIABLE = 180.0, "AMRG_RENDEZVOUS_TIMEOUT"
#: Seconds after which a rank says what it waits for.
_WAIT_NOTICE = 15.0
_UNSET = "start with torchrun, deepspeed or launchers/slurm.sh; for one process, `unset RANK WORLD_SIZE LOCAL_RANK`"


def check_launcher() -> None:
    """Check what the environment says of this rank and the others; take it from SLURM where ``srun`` is the launcher.

    Raises:
        UserError: the variables are incomplete or contradict each other, as those do that another job has left behind.
    """
    environment = os.environ
    if not environment.get("RANK") and int(environment.get("SLURM_STEP_NUM_TASKS") or "1") > 1:
        for name, slurm in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "STEP_NUM_TASKS")):
            environment[name] = environment[f"SLURM_{slurm}"]
        if nodes := environment.get("SLURM_STEP_NODELIST"):
            environment.setdefault("MASTER_ADDR", first_slurm_host(nodes))
        # Two jobs on one node shall not meet; below 32768 the system gives no port to others.
        environment.setdefault("MASTER_PORT", str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 12000))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not environment.get(name):
            environment.pop(name, None)  # empty is as good as absent
        elif not environment[name].isdecimal():
            raise UserError(f"the environment variable {name} is `{environment[name]}`, not a number: {_UNSET}")
    me, ranks = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    if ranks < 1 or me >= ranks:
        raise UserError(f"the environment says RANK {me} of WORLD_SIZE {ranks}: {_UNSET}")
    if ranks > 1 and not environment.get("MASTER_ADDR"):
        raise UserError(
            f"the environment says WORLD_SIZE {ranks}, but no MASTER_ADDR where the ranks could meet: {_UNSET}"
        )
    if not environment.get("MASTER_PORT", "1").isdecimal():
        raise UserError(f"MASTER_PORT is `{environment['MASTER_PORT']}`, not the number of a port: {_UNSET}")


def local_rank_variables(ranks: int) -> dict[str, str]:
    """Return the variables that ranks of this machine share when they are started without a launcher."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def first_slurm_host(nodes: str) -> str:
    """Return the first host of a SLURM node list such as ``gpu[003-005,9],cpu1``."""
    inside = re.compile(r"\[(\d+)[^\]]*\]")
    return inside.sub(r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def listen_for_ranks(address: str, port: int) -> socket.socket:
    """Listen at the address alone, or on all addresses where it is not this machine's own but forwarded to it."""
    family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(place)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        listening.bind(("", port))
    listening.listen(socket.SOMAXCONN)
    return listening


def is_port_answering(address: str, port: int) -> bool:
    """Whether somebody listens there now; gaierror if the name is unknown."""
    try:
        socket.create_connection((address, port), timeout=5.0).close()
    except socket.gaierror:
        raise
    except OSError:
        return False
    return True


class Deadline:
    """Waits for conditions until one time for all, and tells of it meanwhile."""

    def __init__(self, who: str) -> None:
        self._who, self._began, self._noticed = who, time.monotonic(), False
        given = os.environ.get(_TIMEOUT_VARIABLE) or str(RENDEZVOUS_TIMEOUT)
        try:
            self._seconds = float(given)
        except ValueError:
            raise UserError(f"{_TIMEOUT_VARIABLE} is `{given}`, not a number of seconds") from None

    @property
    def left(self) -> float:
        """Seconds until it is over, at least 1."""
        return max(self._began + self._seconds - time.monotonic(), 1.0)

    def wait(self, condition: Callable[[], bool], missing: str) -> None:
        """Wait until a condition holds; raise UserError, which says what is missing, once the time is over."""
        while not condition():
            waited = time.monotonic() - self._began
            if waited > self._seconds:
                raise UserError(
                    f"{self._who}: {missing} within {self._seconds:.0f} s ({_TIMEOUT_VARIABLE} sets another time): "
                    f"{_UNSET}"
                )
            if waited > _WAIT_NOTICE and not self._noticed:
                self._noticed = True
                print_on_rank_0(f"{self._who}: {missing} yet")
            time.sleep(0.1)
