"""Posts to an ASGI application without a client that would send what was announced."""

import asyncio
from collections.abc import Iterator
from typing import Any


def post(
    app: Any, path: str, content_type: bytes, headers: list[tuple[bytes, bytes]], body: Iterator[bytes | None]
) -> tuple[list[dict[str, Any]], int]:
    """Return the messages that were sent, and the bytes that were taken; None in ``body`` leaves."""
    taken: list[int] = []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        chunk = next(body)
        taken.append(len(chunk or b""))
        return {"type": "http.disconnect"} if chunk is None else {"type": "http.request", "body": chunk, "more_body": 1}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    fixed = [(b"host", b"testserver"), (b"content-type", content_type)]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "root_path": "", "headers": [*fixed, *headers], "http_version": "1.1"}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent, sum(taken)
