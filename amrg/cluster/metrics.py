"""What an operator sees on Ray's dashboard and in Prometheus. No metric names a study."""

from ray.util.metrics import Counter, Gauge

from amrg.retrieval.collectives import CommGroup


class ReaderMetrics:
    """Of one reader."""

    def __init__(self, number: int) -> None:
        tags = {"reader": str(number)}
        self._samples = Counter("amrg_reader_samples", "studies read and decoded", ("reader",))
        self._rate = Gauge("amrg_reader_rate", "studies a second while it reads", ("reader",))
        for metric in (self._samples, self._rate):
            metric.set_default_tags(tags)

    def read(self, samples: int, seconds: float) -> None:
        """Count samples that were read in so many seconds."""
        self._samples.inc(samples)
        self._rate.set(samples / seconds)


class WorkerMetrics:
    """Of one worker."""

    def __init__(self, step: str, rank: int) -> None:
        tags = {"step": step, "rank": str(rank)}
        keys = tuple(tags)
        self._ready = Gauge("amrg_queue_depth", "parts of batches that are read and not yet trained on", keys)
        self._wait = Counter("amrg_data_wait_seconds", "time without data", keys)
        self._lost = Counter("amrg_readers_lost", "orders that a lost reader did not deliver", keys)
        self._step = Gauge("amrg_step", "optimiser steps done", keys)
        self._seconds = Gauge("amrg_step_seconds", "time of the last step, the wait for data included", keys)
        self._loss = Gauge("amrg_loss", "of the last step", keys)
        self._bytes = Counter("amrg_bank_bytes", "sent to other workers by the sharded banks", keys)
        for metric in (self._ready, self._wait, self._lost, self._step, self._seconds, self._loss, self._bytes):
            metric.set_default_tags(tags)
        self._sent = CommGroup.total_bytes_sent

    def waited(self, seconds: float, ready: int) -> None:
        """For a part, of which ``ready`` were read when it was asked for."""
        self._ready.set(ready)
        if seconds > 0:
            self._wait.inc(seconds)

    def lost(self) -> None:
        """Count a lost reader."""
        self._lost.inc()

    def trained(self, step: int, row: dict[str, float]) -> None:
        """An optimiser step; ``row`` as in the step log."""
        self._step.set(step)
        self._seconds.set(row["seconds"])
        self._loss.set(row["loss"])
        sent, self._sent = CommGroup.total_bytes_sent - self._sent, CommGroup.total_bytes_sent
        if sent:
            self._bytes.inc(sent)
