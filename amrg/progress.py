"""What long work says: a rich bar on a terminal, plain lines in a log, nothing on ranks other than 0."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

#: Seconds between two plain progress lines in a log.
LOG_EVERY = 15.0

# Progress goes to stderr, so that what a command prints on stdout (tables, JSON) can be piped.
console = Console(stderr=True, highlight=False)


def _silent() -> bool:
    return os.environ.get("RANK", "0") != "0"


def print_on_rank_0(message: str) -> None:
    """Print one line to the user (rank 0 only)."""
    if not _silent():
        console.print(message, markup=False, soft_wrap=True)


def track_progress(iterable: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yield from ``iterable`` and show how far it is.

    Args:
        iterable: the items still to come.
        description: what is being done, a few words.
        total: number of all items, ``done`` included; taken from ``len(iterable)`` when it has one.
        done: items finished earlier (a resumed step starts there).
    """
    if total is None and isinstance(iterable, Sized):
        total = done + len(iterable)
    if _silent():
        yield from iterable
    elif sys.stderr.isatty():
        yield from _bar(iterable, description, total, done)
    else:
        yield from _lines(iterable, description, total, done)


def _bar(iterable: Iterable[T], description: str, total: int | None, done: int) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, completed=done)
        for item in iterable:
            yield item
            progress.advance(task)


def _lines(iterable: Iterable[T], description: str, total: int | None, done: int) -> Iterator[T]:
    start = last = time.monotonic()
    count = done
    for item in iterable:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= LOG_EVERY:
            last = now
            rate = (count - done) / (now - start)
            speed = f"{rate:.1f}/s" if rate >= 0.1 else f"{1 / rate:.0f} s/step"
            left = f", {(total - count) / rate:.0f} s left" if total is not None else ""
            print_on_rank_0(f"{description}: {count}{f'/{total}' if total is not None else ''}, {speed}{left}")
    if count > done or total == 0:
        print_on_rank_0(f"{description}: {count} done in {time.monotonic() - start:.0f} s")
