"""The signed record of what was forgotten: one JSON line for each time, chained by HMAC-SHA256 of a secret key.

It proves to who has the key that the holder of the key wrote each line, and that no line was changed, or left out
before a later one. It does not prove the time, nor that the last lines are there, nor anything to others.
"""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from amrg.errors import UserError

RECORD = "forgotten.jsonl"
_SHORTEST_KEY = 16  # bytes


def read_secret_key(path: Path) -> bytes:
    """Read the secret key of a file.

    Raises:
        UserError: it cannot be read or is too short.
    """
    try:
        key = path.read_bytes()
    except OSError as error:
        raise UserError(f"--key {path} cannot be read ({error.strerror})") from None
    if len(key) < _SHORTEST_KEY:
        raise UserError(
            f"--key {path} holds {len(key)} bytes, at least {_SHORTEST_KEY} secret ones are needed: "
            "`head -c 32 /dev/urandom > FILE` makes some"
        )
    return key


def keyed_text_hash(key: bytes, text: str) -> str:
    """Return the HMAC-SHA256 of a text."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def sign_entry(key: bytes, entry: dict[str, Any], record: Path) -> dict[str, Any]:
    """Return an entry with the signature of the last one in the record and its own."""
    lines = record.read_text().splitlines() if record.exists() else []
    entry = entry | {"previous": json.loads(lines[-1])["signature"] if lines else ""}
    return entry | {"signature": keyed_text_hash(key, _canonical(entry))}


def append_signed_entry(record: Path, entry: dict[str, Any]) -> None:
    """Append a signed entry, unless it is the last one already."""
    line = json.dumps(entry) + "\n"
    if not record.exists() or not record.read_text().endswith(line):
        with record.open("a") as file:
            file.write(line)


def verify_record(key: bytes, record: Path) -> list[dict[str, Any]]:
    """Return the entries of a record.

    Raises:
        UserError: there is none, or a line was changed, left out, or signed with another key.
    """
    if not record.exists():
        raise UserError(f"no {RECORD} in {record.parent}: nothing was forgotten here")
    entries, previous = [], ""
    for number, line in enumerate(record.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            signature = entry.pop("signature")
            valid = entry["previous"] == previous and hmac.compare_digest(
                signature, keyed_text_hash(key, _canonical(entry))
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            valid = False
        if not valid:
            raise UserError(f"{record}: line {number} was changed, follows a missing line, or has another key")
        entries.append(entry)
        previous = signature
    return entries


def _canonical(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)
