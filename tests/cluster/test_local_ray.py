"""A Ray that a run starts for itself, and the cluster that it joins instead."""

import json
import subprocess
import sys

import pytest

from amrg.cluster import pipeline
from amrg.errors import UserError

_TELL = """
import json, psutil
from amrg.cluster.pipeline import cluster_address, open_ray_session
from amrg.config import Config
import ray

with open_ray_session(Config(), local=True):
    processes = psutil.Process().children(recursive=True)
    found = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    print(json.dumps([found, cluster_address() == ray.get_runtime_context().gcs_address]))
"""


def test_it_listens_on_loopback_alone_and_is_no_other_runs_cluster():
    """Ray's own ``auto`` would find it; a second run that joined it would wait for the first one's processors."""
    done = subprocess.run([sys.executable, "-c", _TELL], capture_output=True, text=True, timeout=300, check=True)
    addresses, found = json.loads(done.stdout.splitlines()[-1])
    assert not found
    assert len(addresses) >= 3  # its store, its raylet, its dashboard
    assert set(addresses) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "nonsense"])
def test_an_address_where_nobody_answers_is_one_line_soon(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS is {address}, but no Ray cluster answers there") as error:
        pipeline.cluster_address()
    assert "\n" not in str(error.value)


def test_what_a_cluster_that_has_ended_left_behind_is_no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(pipeline, "recorded_address", lambda: "127.0.0.1:1")
    assert pipeline.cluster_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert pipeline.cluster_address() is None
