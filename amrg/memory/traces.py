"""Search of files for bytes of removed studies."""

import html
import json
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: Characters of the shortest sentence that is searched: shorter ones are anyone's.
SHORTEST = 16


@dataclass
class Traces:
    """Bytes that only removed studies have.

    Attributes:
        names: keys and groups; they count where no letter, digit, ``-`` or ``_`` adjoins them.
        contents: texts, vectors and parts of films.
    """

    names: set[bytes] = field(default_factory=set)
    contents: set[bytes] = field(default_factory=set)

    def add_names(self, names: Iterable[str]) -> None:
        """Add keys or groups."""
        self.names |= {name.encode() for name in names}

    def add_texts(self, texts: Iterable[str]) -> None:
        """Add texts as they stand in plain text, JSON and HTML; short ones are left out."""
        for text in texts:
            if len(text) >= SHORTEST:
                forms = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text))
                self.contents |= {form.encode() for form in forms}

    def found_in(self, path: Path) -> bool:
        """Return whether a file holds any of them, in its bytes or in the values of a Parquet table."""
        if not path.stat().st_size:
            return False
        if path.suffix == ".parquet" and any(map(self._in, _values(path))):
            return True
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return self._in(content)

    def _in(self, content: bytes | mmap.mmap) -> bool:
        if any(content.find(one) >= 0 for one in self.contents):
            return True
        for name in self.names:
            if content.find(name) >= 0 and re.search(rb"(?<![\w-])" + re.escape(name) + rb"(?![\w-])", content):
                return True
        return False


def _values(path: Path) -> Iterator[bytes]:
    """Yield the decoded rows of a Parquet file in blocks; nothing of a damaged one."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(4096):
            yield json.dumps(batch.to_pylist(), ensure_ascii=False, default=str).encode()
    except (OSError, pa.ArrowException):
        return
