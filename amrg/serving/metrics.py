"""Metrics in the text format of Prometheus. Labels hold routes and statuses, nothing of a study."""

import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Content-Type of ``Metrics.text``.
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STUDIES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one server, in a registry of its own.

    Args:
        paths: routes; requests for another path are counted as ``other``, so that no client can add labels.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self._paths = frozenset(paths)
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("amrg_requests", "Answered requests.", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "amrg_request_seconds", "Seconds of a request.", ("path",), buckets=_SECONDS, registry=registry
        )
        self.batches = Histogram("amrg_batch_studies", "Studies in a batch.", buckets=_STUDIES, registry=registry)
        self.batch_seconds = Histogram("amrg_batch_seconds", "Seconds of a batch.", buckets=_SECONDS, registry=registry)
        self._gauges = {
            name: Gauge(f"amrg_{name}", text, registry=registry)
            for name, text in {
                "waiting_studies": "Studies that wait for the worker.",
                "requests_in_work": "Requests for reports that are read, wait or are written.",
                "ready": "1 if the model is loaded, else 0.",
                "worker_failures": "How often the worker has failed and was started again.",
            }.items()
        }

    def watch(self, name: str, value: Callable[[], float]) -> None:
        """Set the function that gives the value of a gauge."""
        self._gauges[name].set_function(value)

    def add_batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        path = path if path in self._paths else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)


class CountRequests:
    """Counts the requests of an application by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.monotonic()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            self._metrics.count(scope["path"], status, time.monotonic() - start)
