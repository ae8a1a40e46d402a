"""Stage 2 on several raylets of this machine, undisturbed and with losses; arguments: RUNS RESULT LOSSES...

LOSSES is what happens to one run, joined by "+" (nothing, reader, worker, node, room, back, driver, patience, stop),
and settings of it. RESULT gets one JSON line for each run: steps done before each loss and seconds until training went
on after it, hashes of what was trained, what the run left behind. To be started in namespaces of its own
(``linux_namespaces.py``), where nothing but the loopback is and where every process seen is ours.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from amrg.artifacts import sha256_of_file

SCRIPT = Path(__file__).with_name("stage2_worker.py")
#: A machine with room for one worker and one reader.
NODE = {"num_cpus": 1, "resources": {"reader": 1}, "object_store_memory": 80 * 2**20}
#: Lines in the log of steps at which something is lost: some steps after a checkpoint, and before the next one.
WHEN = (6, 11, 16)
#: Seconds for a group of workers to start on a busy machine.
PATIENCE = 300
TRAINED = ("curves.jsonl", "model/model.safetensors", "model/decoder/model.safetensors")


def processes(name: str) -> list[int]:
    """Process ids whose command line begins with a name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(name.encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


class Losses:
    """A cluster of a head without room and two machines, and one run after the other on it."""

    def __init__(self, runs: Path) -> None:
        self.root = runs / "tiny"
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False},
        )
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]
        self.command = [sys.executable, str(SCRIPT), str(runs)]
        os.environ["RAY_ADDRESS"] = self.cluster.address

    def run(self, losses: str, *settings: str) -> dict[str, object]:
        """One run, during which the ``losses`` happen."""
        driver = self.start(*settings)
        back: dict[str, float] = {}
        self.before: dict[str, int] = {}
        for when, loss in zip(WHEN, losses.replace("nothing", "").split("+"), strict=False):
            if loss:
                self.wait_for(driver, when)
                self.before[loss] = done = len(self.steps())
                began = time.monotonic()
                driver = getattr(self, loss)(driver, *settings)
                self.wait_for(driver, max(done, self.before.get("all", 0)) + 2)  # one line may have been on its way
                back[loss] = round(time.monotonic() - began, 1)
        code, said = driver.wait(timeout=400), self.output.read_text()
        steps = [json.loads(line)["step"] for line in self.steps()]
        row = {"losses": losses, "code": code, "before": self.before, "back": back, "steps": steps, "said": said}
        for made in self.root.glob("stage2-*[0-9a-f]"):
            row["hashes"] = {path: sha256_of_file(made / path) for path in TRAINED}
            shutil.rmtree(made)
        return row | {"left": self.left()}

    def start(self, *settings: str) -> subprocess.Popen[bytes]:
        self.output = self.root / "output.txt"
        with self.output.open("w") as file:
            return subprocess.Popen([*self.command, *settings], stdout=file, stderr=subprocess.STDOUT)

    def steps(self) -> list[str]:
        return [line for path in self.root.glob("stage2-*/logs/steps.jsonl") for line in path.read_text().splitlines()]

    def wait_for(self, driver: subprocess.Popen[bytes], steps: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.steps()) < steps and driver.poll() is None:
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)

    def wait_for_line(self, driver: subprocess.Popen[bytes], line: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while line not in self.output.read_text():
            assert driver.poll() is None and time.monotonic() < deadline, self.output.read_text()  # noqa: PT018
            time.sleep(0.02)

    def left(self) -> list[str]:
        """Actors' processes, placement groups and files that a run has left behind, a moment after it."""
        deadline = time.monotonic() + 20
        while True:
            found = [f"process {name}" for name in ("ray::Reader", "ray::RayTrain", "ray::Train") if processes(name)]
            found += [path.name for path in self.root.iterdir() if path.name == ".ray" or path.suffix == ".partial"]
            with connected_to(self.cluster):
                table = placement_group_table().values()
                found += [f"placement group {group['name']}" for group in table if group["state"] != "REMOVED"]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    # ---- what is lost ----

    def reader(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        os.kill(processes("ray::Reader")[0], signal.SIGKILL)
        return driver

    def worker(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        os.kill(processes("ray::RayTrainWorker")[0], signal.SIGKILL)
        return driver

    def node(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        """A machine goes, another comes."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(**NODE))
        return driver

    def room(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        """A machine goes, and none comes until the training goes on without it."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.wait_for_line(driver, "room for 1 of 2 workers")
        self.wait_for_line(driver, "training again at step")  # until then the log has steps that are done again
        return driver

    def back(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        """A machine comes; the training that went on without it takes it."""
        self.nodes.append(self.cluster.add_node(**NODE))
        self.wait_for_line(driver, "room for all 2 workers again")
        self.before["all"] = len(self.steps())  # the next group is some seconds from its first step
        return driver

    def driver(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        driver.kill()
        driver.wait()
        return self.start(*settings)

    def stop(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        """Ctrl-C, for good."""
        driver.send_signal(signal.SIGINT)
        return driver

    def patience(self, driver: subprocess.Popen[bytes], *settings: str) -> subprocess.Popen[bytes]:
        """Ctrl-C; then the same command again."""
        driver.send_signal(signal.SIGINT)
        driver.wait()
        assert driver.returncode == 130, (driver.returncode, self.output.read_text())
        assert self.left() == [next(self.root.glob("*.partial")).name]
        return self.start(*settings)


@contextmanager
def connected_to(cluster: Cluster) -> Iterator[None]:
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def main(runs: Path, result: Path, losses: list[str]) -> None:
    scene = Losses(runs)
    try:
        for one in losses:
            names, *settings = one.split()
            with result.open("a") as file:
                file.write(json.dumps(scene.run(names, *settings)) + "\n")
    finally:
        scene.cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
