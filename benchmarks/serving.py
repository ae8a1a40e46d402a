"""Load a server with requests: ``python -m benchmarks.serving RUN``.

Starts `amrg serve RUN`, sends test films of the run from several threads, and prints how many were answered or refused,
throughput, latencies, memory before and after, and how many reports differ from those of films that were sent alone.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from amrg.data.stream import iter_split_samples
from amrg.inference.run_artifacts import find_run_artifacts

REQUESTS, CONCURRENCY, FILMS = 200, 16, 40


@dataclass(frozen=True)
class Answer:
    """An answered request: its status, seconds, and the report if there is one."""

    status: int
    seconds: float
    report: str | None


def form(films: list[np.ndarray]) -> tuple[bytes, str]:
    """Return the films, uint8 [H, W] each, as a form, and its Content-Type."""
    boundary = uuid.uuid4().hex
    body = io.BytesIO()
    for film in films:
        body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="film"\r\n\r\n'.encode())
        Image.fromarray(film).save(body, "PNG")
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={boundary}"


def send(address: str, body: bytes, content_type: str) -> Answer:
    """Send a study once."""
    start = time.monotonic()
    try:
        with urlopen(Request(f"{address}/v1/reports", body, {"Content-Type": content_type}), timeout=300) as answer:
            status, report = answer.status, json.load(answer)["generated"]
    except HTTPError as error:
        status, report = error.code, None
    return Answer(status, time.monotonic() - start, report)


def memory(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))  # of each thread
    pids = [pid, *map(int, children.split())]
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in pids)
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY)
    options, others = parser.parse_known_args()  # the rest is for `amrg serve`
    samples = islice(iter_split_samples(find_run_artifacts(options.run).data.path, "test"), FILMS)
    studies = [form(sample.views) for sample in samples]
    command = [sys.executable, "-m", "amrg.cli", "serve", str(options.run), "--port", "0", *others]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            address = next(found[1] for line in server.stderr if (found := re.search(r"serving at (http\S+)", line)))
            alone = [send(address, *study).report for study in studies]  # and everything is loaded
            before, start = memory(server.pid), time.monotonic()
            with ThreadPoolExecutor(options.concurrency) as pool:
                numbers = [number % len(studies) for number in range(options.requests)]
                answers = list(pool.map(lambda number: send(address, *studies[number]), numbers))
            seconds, after = time.monotonic() - start, memory(server.pid)
            with urlopen(f"{address}/metrics") as answer:
                counts = dict(re.findall(r"^(amrg_batch_studies_(?:sum|count)) (\S+)$", answer.read().decode(), re.M))
        finally:
            server.terminate()
    latencies = [answer.seconds for answer in answers if answer.status == 200]
    pairs = [(answer.report, alone[n]) for answer, n in zip(answers, numbers, strict=True) if answer.status == 200]
    batches = float(counts["amrg_batch_studies_count"]) - len(studies)
    for name, value in {
        "answers by status": dict(sorted(Counter(answer.status for answer in answers).items())),
        "reports per second": f"{len(latencies) / seconds:.2f}",
        "latency, p50 and p95": " and ".join(f"{np.quantile(latencies, q):.1f} s" for q in (0.5, 0.95)),
        "studies per batch": f"{(float(counts['amrg_batch_studies_sum']) - len(studies)) / batches:.1f}",
        "memory before and after": f"{before:.0f} and {after:.0f} MiB",
        "reports unlike those of the film alone": f"{sum(a != b for a, b in pairs)} of {len(pairs)}",
    }.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
