"""HTTP interface: reports of films, health and metrics. What a route takes and answers is in ``openapi.json``."""

import asyncio
import hmac
import json
import math
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from amrg.data.context import Context
from amrg.data.film_checks import NotAFilm
from amrg.data.own_studies import GivenPrior, StudyFilms, read_given_context, read_given_prior, read_own_study
from amrg.errors import UserError
from amrg.inference.run_artifacts import RunArtifacts
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.progress import print_on_rank_0
from amrg.serving.batching import Batcher, Study, WorkerFailed, error_place
from amrg.serving.docs_page import FILES, docs_file, docs_page
from amrg.serving.inputs import JSON, MULTIPART, PRIOR_FIELDS, parse_media_type, parse_study_request
from amrg.serving.metrics import MEDIA_TYPE, CountRequests, Metrics
from amrg.serving.outputs import DICOM, FHIR, missing_extra, read_source_headers, render_record
from amrg.webapp.requests import RequestGuard, ResponseHeaders, without_folders

#: Maximal size of a request. A film of 4,280 × 3,520 pixels in 16 bits has 30 MB.
MAX_BYTES = 128 * 2**20
#: Maximal size of all requests that are being read together.
MAX_HELD = 4 * MAX_BYTES
#: Films that are decoded at a time; each may take some hundred megabytes while it is.
READERS = 2
RECORD, EVENTS = "application/json", "text/event-stream"
#: Seconds between two checks of a study whose events are streamed, and after which a stream without events has a
#: comment, so that no proxy closes it.
POLL, KEEP_ALIVE = 0.1, 10.0
TOO_LARGE = f"larger than the {MAX_BYTES // 2**20} MB that a request may have"
HEALTH = "/health"
#: Routes, as metrics name them.
PATHS = ("/v1/reports", HEALTH, "/metrics", "/openapi.json", "/docs")
#: Routes that need no token: what orchestrators request, and the description of the interface, without data of a run.
OPEN = (HEALTH, "/openapi.json", "/docs", *(f"/docs/{file}" for file in FILES))
OPENAPI = Path(__file__).parent / "openapi.json"


@dataclass(frozen=True)
class Access:
    """Who is answered.

    Attributes:
        token: bearer token that every request but those for ``OPEN`` needs; None: none is needed. A page of another
            site does not know it, so with a token every host name is accepted.
        origins: origins whose pages may call the interface (CORS).
        hosts, any_address: as of ``RequestGuard``, without a token.
    """

    token: str | None = None
    origins: Collection[str] = ()
    hosts: Collection[str] = ()
    any_address: bool = False


def create_serving_app(
    chain: RunArtifacts, batcher: Batcher, metrics: Metrics, access: Access, queue: int, seconds: float
) -> ASGIApp:
    """Build the application.

    Args:
        chain: the run that ``batcher`` writes with.
        batcher: writes the reports.
        metrics: counts the requests; its ``paths`` are ``PATHS``.
        access: who is answered.
        queue: most requests for reports that are in work at once; more are refused.
        seconds: most seconds of a request.
    """
    handlers = Handlers(chain, batcher, metrics, queue, seconds)
    app: ASGIApp = Starlette(
        routes=[
            Route("/v1/reports", handlers.report, methods=["POST"]),
            Route(HEALTH, handlers.health),
            Route("/metrics", handlers.metrics),
            Route("/openapi.json", handlers.openapi),
            Route("/docs", docs_page, include_in_schema=False),
            Route("/docs/{file}", docs_file, include_in_schema=False),
        ],
        exception_handlers={UserError: _refuse, HTTPException: _refuse, ClientDisconnect: _nobody},
    )
    if access.token is None:
        app = RequestGuard(app, access.hosts, access.any_address, ("/v1/", "/metrics"), access.origins)
    else:
        app = BearerToken(app, access.token)
    if access.origins:
        app = CORSMiddleware(
            app,
            list(access.origins),
            ["GET", "POST"],
            ["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    return ResponseHeaders(CountRequests(app, metrics))


@dataclass(frozen=True)
class _Study:
    """A study that was received; ``sources`` are the headers of its DICOM films, if they are needed."""

    name: str
    read: StudyFilms
    context: Context
    prior: GivenPrior | None
    sources: list[Any]

    @property
    def to_write(self) -> Study:
        """What the model reads of it."""
        return self.read.films, self.context, self.prior, self.read.views


class BearerToken:
    """Refuses requests without the token, but for the routes in ``OPEN``."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            given = Headers(scope=scope).get("authorization", "")
            if not hmac.compare_digest(given.encode("latin-1"), self._expected):
                response = JSONResponse(
                    {"error": "a bearer token is needed: send `Authorization: Bearer TOKEN`"},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Handlers:
    """Request handlers with their state."""

    def __init__(self, chain: RunArtifacts, batcher: Batcher, metrics: Metrics, queue: int, seconds: float) -> None:
        self._chain, self._batcher, self._metrics = chain, batcher, metrics
        self._queue, self._seconds = queue, seconds
        self._held = 0  # bytes of requests that are being read
        self._in_work = 0
        self._readers = anyio.CapacityLimiter(READERS)
        metrics.watch("waiting_studies", lambda: len(batcher))
        metrics.watch("requests_in_work", lambda: self._in_work)
        metrics.watch("ready", lambda: batcher.ready)
        metrics.watch("worker_failures", lambda: batcher.failures)

    def health(self, _: Request) -> Response:
        """Tell whether the model is loaded, and which it is: 503 while it is not."""
        chain, ready = self._chain, self._batcher.ready
        embedded = [EMBEDDED_DATA_NOTICE] if chain.config.data.source == "openi_drr" else []
        content = {
            "live": True,
            "ready": ready,
            "run": chain.name,
            "model": chain.model,
            "warnings": [NOT_CLINICAL_NOTICE, *embedded, *chain.warnings],
        }
        return JSONResponse(content, 200 if ready else 503)

    def metrics(self, _: Request) -> Response:
        """Return the metrics."""
        return Response(self._metrics.text(), media_type=MEDIA_TYPE)

    def openapi(self, _: Request) -> Response:
        """Return the description of this interface."""
        return FileResponse(OPENAPI, media_type="application/json")

    async def report(self, request: Request) -> Response:
        """Write the report of a study."""
        try:
            return await self._report(request)
        except (HTTPException, UserError, ClientDisconnect):
            raise
        except Exception as error:  # the server would log its message, which could quote a film or a report
            print_on_rank_0(f"a request failed: {error_place(error)}")
            return JSONResponse({"error": f"something went wrong here ({type(error).__name__})"}, 500)

    async def _report(self, request: Request) -> Response:
        wanted = _accepted(request.headers.get("accept", "*/*"))
        if parse_media_type(request.headers.get("content-type", "")) not in (MULTIPART, JSON):
            raise HTTPException(415, f"send a study as {MULTIPART} or {JSON}")
        self._in_work += 1
        try:
            end = asyncio.get_running_loop().time() + self._seconds
            async with asyncio.timeout_at(end):
                if self._in_work > self._queue:
                    await self._turn_away(request)
                study = await self._receive(request, wanted)
                if wanted == EVENTS:
                    return self._stream(study, end)
                record = await self._write(request, study.to_write)
        except TimeoutError:
            raise self._late() from None
        except WorkerFailed:
            raise self._failed() from None
        finally:
            self._in_work -= 1
        record = self._record(study, record)
        if wanted == RECORD:
            return JSONResponse(record)
        return Response(await to_thread.run_sync(render_record, wanted, record, study.sources), media_type=wanted)

    def _record(self, study: _Study, record: dict[str, Any]) -> dict[str, Any]:
        """Add what is known of the study to the record that was written."""
        record = {"study": study.name, "model": self._chain.model, **record}
        if study.read.forced:
            record["forced"] = "; ".join(study.read.forced)
        if study.read.notes:
            record["left_out"] = study.read.notes
        return record

    def _stream(self, study: _Study, end: float) -> Response:
        """Answer with server-sent events; the request stays in work until they end or the client has gone."""
        self._in_work += 1
        future = self._batcher.submit(study.to_write)

        def close() -> None:
            self._in_work -= 1
            self._batcher.cancel(future)

        return _EventResponse(self._events(study, future, end), close)

    async def _events(self, study: _Study, future: Future[dict[str, Any]], end: float) -> AsyncIterator[str]:
        """Yield ``state`` as it changes, then ``report`` or ``error``."""
        loop = asyncio.get_running_loop()
        sent: dict[str, Any] = {}
        last_sent = loop.time()
        try:
            while not future.done():
                if loop.time() > end:
                    raise self._late()
                before = self._batcher.position(future)
                state: dict[str, Any] = (
                    {"state": "writing"} if before is None else {"state": "waiting", "before": before}
                )
                if state != sent:
                    sent, last_sent = state, loop.time()
                    yield _event("state", state)
                elif loop.time() > last_sent + KEEP_ALIVE:
                    last_sent = loop.time()
                    yield ":\n\n"
                await asyncio.sleep(POLL)
            yield _event("report", self._record(study, future.result()))
        except (HTTPException, WorkerFailed) as error:
            later = error if isinstance(error, HTTPException) else self._failed()
            after = int((later.headers or {})["Retry-After"])
            yield _event("error", {"error": later.detail, "status": later.status_code, "retry_after": after})

    async def _receive(self, request: Request, wanted: str) -> _Study:
        """Read the body and the films in it."""
        announced = request.headers.get("content-length", "")
        size = int(announced) if announced.isdecimal() else MAX_BYTES
        if size > MAX_BYTES:
            raise HTTPException(413, TOO_LARGE)
        if self._held + size > MAX_HELD:
            await self._turn_away(request)
        self._held += size
        try:
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > size:
                    raise HTTPException(413, TOO_LARGE)
            content_type = request.headers["content-type"]
            # A film may take much memory while it is read.
            return await to_thread.run_sync(self._read, content_type, body, wanted, limiter=self._readers)
        finally:
            self._held -= size

    def _read(self, content_type: str, body: bytearray, wanted: str) -> _Study:
        received = parse_study_request(content_type, bytes(body))
        given = read_given_context(received.context, "")
        report, days = (received.prior.get(name, "").strip() for name in PRIOR_FIELDS)
        earlier = StudyFilms([], [], [])
        if received.prior_films:
            earlier = self._read_films(received.prior_films, received.force, "the earlier study: ")
        prior = read_given_prior(report, tuple(earlier.films), days, "prior_days")
        if prior is not None:
            prior = replace(prior, views=earlier.views)
        read = self._read_films(received.films, received.force)
        sources = read_source_headers(received.films) if wanted == DICOM else []
        return _Study(received.name, read, given.filled(read.context), prior, sources)

    def _read_films(self, films: list[tuple[str, bytes]], force: bool, where: str = "") -> StudyFilms:
        try:
            return read_own_study(films, self._batcher.image_size, self._chain.frontal_only, force)
        except NotAFilm as error:
            raise UserError(f"{where}refused as no chest film for this model: {error}") from None
        except ValueError as error:
            raise UserError(f"{where}no film that can be read: {error}") from None

    async def _write(self, request: Request, study: Study) -> dict[str, Any]:
        """Wait for the report, or until the client has gone."""
        future = self._batcher.submit(study)
        record: asyncio.Future[dict[str, Any]] = asyncio.wrap_future(future)
        gone: asyncio.Future[None] = asyncio.create_task(_disconnected(request))
        ends: list[asyncio.Future[Any]] = [record, gone]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if record not in done:
                raise ClientDisconnect
            return record.result()
        finally:
            gone.cancel()
            record.cancel()
            self._batcher.cancel(future)

    async def _turn_away(self, request: Request) -> NoReturn:
        """Refuse a request because others are in work.

        Its body is received, but not kept: a client that is still sending may not see the answer.
        """
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > MAX_BYTES:
                break
        raise self._later(429, "too many studies are waiting: send this one later")

    def _late(self) -> HTTPException:
        return self._later(503, f"not written within the {self._seconds:g} s of a request")

    def _failed(self) -> HTTPException:
        return self._later(503, "the worker failed and is started again: send the study once more")

    def _later(self, status: int, text: str) -> HTTPException:
        return HTTPException(status, text, {"Retry-After": str(math.ceil(self._batcher.wait))})


class _EventResponse(StreamingResponse):
    """Server-sent events; ``close`` is called in the end, however it comes."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, media_type=EVENTS)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def _event(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _accepted(accept: str) -> str:
    """Return the first media type of an Accept header that there is; raises 406 if there is none."""
    for one in map(parse_media_type, accept.split(",")):
        if one in ("*/*", "application/*", RECORD):
            return RECORD
        if one == EVENTS:
            return EVENTS
        if one in (FHIR, DICOM):
            if missing := missing_extra(one):
                raise HTTPException(406, f"{one} is not installed here: pip install 'amrg[{missing}]'")
            return one
    raise HTTPException(406, f"a report is given as {RECORD}, {EVENTS}, {FHIR} or {DICOM}")


def _refuse(_: Request, error: Exception) -> Response:
    """Convert an error of the client, or a refusal, to a JSON response of one line."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": without_folders(str(error))}, 422)


def _nobody(_: Request, __: Exception) -> Response:
    """Return what nobody reads: the client has gone."""
    return Response(status_code=400)
