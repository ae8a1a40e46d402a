"""A Ray that a run starts for itself can be reached from its own machine alone."""

import json
import subprocess
import sys

_TELL = """
import json, psutil
from amrg.cluster.pipeline import ray_session
from amrg.config import Config

with ray_session(Config(), local=True):
    processes = psutil.Process().children(recursive=True)
    found = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    print(json.dumps(found))
"""


def test_it_listens_on_loopback_alone():
    done = subprocess.run([sys.executable, "-c", _TELL], capture_output=True, text=True, timeout=120, check=True)
    addresses = json.loads(done.stdout.splitlines()[-1])
    assert len(addresses) >= 3  # its store, its raylet, its dashboard
    assert set(addresses) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
