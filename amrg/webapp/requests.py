"""Which requests the web application answers, and the headers of its responses."""

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: The page loads nothing from other hosts, cannot be framed or loaded by other pages, and is not cached by the browser.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ABSOLUTE_PATH = re.compile(r"(?<![\w.])/(?:[^\s/]+/)+(?=[^\s/])")


class ResponseHeaders:
    """Adds ``_HEADERS`` to every response of an application, also to those of its errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with the headers added."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *((name, value) for name, value in message["headers"] if name != b"cache-control"),
                    *((name.lower().encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class RequestGuard:
    """Refuses requests under a foreign host name (DNS rebinding) and those that another site's page makes (CSRF).

    A link of another site may open the page; only the data routes are refused to other origins.

    Args:
        app: the application.
        hosts: accepted host names, in lower case.
        any_address: whether every IP address is accepted as well, as on a machine with several.
        data: how the paths of the data routes begin.
        origins: other origins whose pages may call the data routes.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str],
        any_address: bool,
        data: tuple[str, ...] = ("/api/",),
        origins: Collection[str] = (),
    ) -> None:
        self.app, self._hosts, self._any_address = app, frozenset(hosts), any_address
        self._data, self._origins = data, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] == "http" and (reason := self._refusal(Headers(scope=scope), scope["path"])):
            status, text = reason
            await JSONResponse({"error": text}, status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._known(host):
            return 400, "No answer under this host name: start the server with `--host NAME` for another one."
        origin = headers.get("origin")
        if path.startswith(self._data) and origin not in self._origins:
            foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
            if foreign or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
                return 403, "The page of another site may not ask for this."
        return None

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            known = name in self._hosts or (self._any_address and bool(ipaddress.ip_address(name)))
            return known and "@" not in host
        except ValueError:
            return False


def without_folders(message: str) -> str:
    """Cut absolute paths down to their last name: other machines may read the message."""
    return _ABSOLUTE_PATH.sub("", message)
