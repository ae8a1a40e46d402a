"""Decisions about losses, and the launcher's mistakes; real groups of workers are in ``test_fault_injection.py``."""

import logging

import pytest
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from amrg.cluster.ray_internals import LOSSES
from amrg.cluster.workers import _diagnose_loss, _log_with_rank_and_step, divides_batch, scaling_config
from amrg.data.stream import MAX_LANES, num_batch_lanes
from amrg.errors import UserError
from amrg.kernels.hopfield import backends

TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1\n'


def test_a_smaller_group_must_share_the_lanes() -> None:
    assert [size for size in range(1, 13) if divides_batch(12, size)] == [1, 2, 3, 4, 6, 12]
    assert num_batch_lanes(96) == 48
    assert not divides_batch(96, 32)  # divides the batch, not its lanes
    assert divides_batch(2 * 96, 96)  # more ranks than any stream has lanes: features come from a cache
    assert MAX_LANES < 96


@pytest.mark.parametrize(("each", "uses"), [({"CPU": 2.0, "GPU": 1.0}, True), ({"CPU": 2.0}, False)])
def test_workers_with_a_gpu_are_described_as_ray_wants(each: dict[str, float], uses: bool) -> None:
    found = scaling_config(2, each)  # Ray raises where a GPU is reserved and not used
    assert (found.num_workers, found.use_gpu, found.resources_per_worker) == (2, uses, each)


def test_a_worker_says_which_back_end_retrieves(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    ours = logging.getLogger("amrg")
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", True)
    monkeypatch.setattr(logging.getLogger("amrg.kernels"), "level", logging.NOTSET)
    _log_with_rank_and_step(3)
    backends._log_once.cache_clear()
    backends._log_once("two_products", "sm_90")
    backends._log_once("two_products", "sm_90")
    assert capsys.readouterr().err == "INFO rank 3 step 0: retrieval: two products (sm_90)\n"


def _group_error(raised: dict[int, Exception]) -> WorkerGroupError:
    """The error that Ray makes of what its workers raised, as its controller does."""
    wrapped = {
        rank: error if isinstance(error, LOSSES) else UserExceptionWithTraceback(error, f"{TRACE}{error!r}")
        for rank, error in raised.items()
    }
    statuses = {rank: WorkerStatus(running=False, error=error) for rank, error in wrapped.items()}
    return WorkerGroupPollStatus(statuses).get_worker_group_error()


def test_a_users_mistake_in_a_worker_ends_the_run_in_its_own_words() -> None:
    failures = {0: RuntimeError("connection closed by peer"), 1: UserError("stage2.lr is odd: choose another")}
    with pytest.raises(UserError, match=r"^stage2.lr is odd: choose another$"):
        _diagnose_loss(_group_error(failures))


def test_a_lost_worker_counts_for_more_than_what_its_peers_say() -> None:
    peer = RuntimeError("Connection closed by peer [10.0.0.3]:4321")
    assert _diagnose_loss(_group_error({0: peer, 1: RayActorError()})) == ("lost the worker of rank 1", True)
    assert _diagnose_loss(_group_error({1: WorkerHealthCheckFailedError("gone", peer)})) == (
        "lost the worker of rank 1",
        True,
    )
    # The death of rank 1 may not have been noticed yet.
    assert _diagnose_loss(_group_error({0: peer})) == ("rank 0 lost a peer", True)


def test_an_error_of_ours_is_no_accident() -> None:
    assert _diagnose_loss(_group_error({0: ZeroDivisionError("first line\ndivision by zero")})) == (
        "rank 0 failed: ZeroDivisionError: division by zero",
        False,
    )
