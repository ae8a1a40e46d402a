"""The web application: a page, and what its script asks for. Everything it serves comes from the package or the run."""

import hashlib
import json
import queue
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from anyio import to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amrg.banks.bank import NO_GROUP, group_id
from amrg.data.image_io import read_film
from amrg.data.image_ops import letterbox
from amrg.data.labels import FINDINGS
from amrg.data.stream import Sample
from amrg.data.studies import SPLITS
from amrg.errors import UserError
from amrg.inference.run import RunArtifacts
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.pages.overlays import film_url, heat_url, outline_url
from amrg.webapp.run_store import NotFound, RunStore, positives
from amrg.webapp.session import MEMORIES, SHOWN_SIZE, ClientGone, InferenceSession, StudyAnalysis

#: Larger files are refused before they are read. A radiograph of 4,280 × 3,520 pixels in 16 bits has 30 MB.
MAX_BYTES = 64 * 2**20
#: Looks held in memory; an older study is looked at again when it is asked for, an older dropped film is gone.
MAX_CACHED = 32
UPLOADED = "dropped"
HERE = Path(__file__).parent

#: Nothing is loaded from anywhere else, nothing frames the page, and nothing it shows is kept by the browser.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(chain: RunArtifacts, hosts: list[str] | None = None) -> Starlette:
    """The application for one run; loads its models.

    Args:
        chain: the run's artefacts.
        hosts: names under which the page may be asked for; any if None. (A page elsewhere that rebinds its own name to
            this machine is turned away by them.)

    Raises:
        UserError: an artefact is not what it should be.
    """
    desk = Handlers(chain)
    return Starlette(
        routes=[
            Route("/", desk.page),
            Route("/api/studies", desk.studies),
            Route("/api/looks", desk.upload, methods=["POST"]),
            Route("/api/looks/{place}/{name}", desk.look),
            Route("/api/looks/{place}/{name}/patches", desk.patches),
            Route("/api/looks/{place}/{name}/report", desk.report),
            Route("/api/banks/{bank}/{row:int}", desk.row),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"]), Middleware(_Headers)],
        exception_handlers={UserError: _client_error, HTTPException: _client_error, Exception: _fail},
    )


class Handlers:
    """The handlers, and what they hold: the models, the shelves, and the last looks."""

    def __init__(self, chain: RunArtifacts) -> None:
        self._chain, self._reader = chain, InferenceSession(chain)
        self._shelves = RunStore(chain, self._reader.classifier.config.image_size, self._reader.grid)
        self._looks: OrderedDict[tuple[str, str], tuple[StudyAnalysis, Sample | None]] = OrderedDict()
        self._lock = threading.Lock()
        loader = PackageLoader("amrg.webapp", ".")
        self._page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.j2")

    def page(self, _: Request) -> Response:
        chain, config = self._chain, self._reader.config
        return HTMLResponse(
            self._page.render(
                name=chain.name,
                source=config.data.source,
                generator=chain.stage2.path.name,
                always=NOT_CLINICAL_NOTICE,
                embedded=EMBEDDED_DATA_NOTICE if config.data.source == "openi_drr" else None,
                marks=chain.warnings,
                splits=list(reversed(SPLITS)),
                max_bytes=MAX_BYTES,
                threshold=config.banks.mining.threshold,
                method=config.banks.mining.method,
                beams=config.generate.num_beams,
                memories=list(self._reader.memories),
            )
        )

    def studies(self, request: Request) -> Response:
        asked = request.query_params
        return JSONResponse(self._shelves.listing(asked.get("split", "test"), asked.get("words", "")))

    def look(self, request: Request) -> Response:
        return JSONResponse(self._describe(request.path_params["place"], request.path_params["name"]))

    async def upload(self, request: Request) -> Response:
        """A film as the body of the request: never held whole when it is too large."""
        data = await _body(request)
        return JSONResponse(await to_thread.run_sync(self._drop, data))

    def _drop(self, data: bytes) -> dict[str, Any]:
        try:
            film = read_film(data, SHOWN_SIZE)
        except ValueError as error:
            raise UserError(
                f"This file is no film that can be read: {error}. Give a PNG, JPEG or DICOM file."
            ) from None
        name = hashlib.sha256(data).hexdigest()[:16]
        self._cache((UPLOADED, name), self._reader.analyze([film], NO_GROUP), None)
        return self._describe(UPLOADED, name)

    def patches(self, request: Request) -> Response:
        look, _ = self._cached(request)
        film, finding = _number(request, "film", int), request.query_params.get("finding", "")
        threshold = _number(request, "threshold", float)
        if finding not in FINDINGS or not 0 <= film < len(look.films):
            raise NotFound("this study has no such film or finding")
        found = self._reader.patches(look, film, finding, threshold)
        return JSONResponse([{"row": y, "column": x, "activation": round(value, 3)} for y, x, value in found])

    def row(self, request: Request) -> Response:
        return JSONResponse(self._shelves.row(request.path_params["bank"], request.path_params["row"]))

    def report(self, request: Request) -> Response:
        """Server-sent events: ``text`` and ``sentence`` (``Reader.write``), then ``end`` or ``problem``."""
        look, _ = self._cached(request)
        off = {name for name in request.query_params.get("off", "").split(",") if name}
        if off - MEMORIES.keys():
            raise NotFound(f"no such memory: {', '.join(MEMORIES)} can be switched off")
        return StreamingResponse(self._events(look, off), media_type="text/event-stream")

    async def _events(self, look: StudyAnalysis, off: set[str]) -> AsyncIterator[str]:
        told: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        left = threading.Event()

        def tell(kind: str, content: dict[str, Any]) -> None:
            if left.is_set():
                raise ClientGone
            told.put((kind, content))

        def write() -> None:
            try:
                self._reader.write(look, off, tell)
                told.put(("end", {}))
            except ClientGone:
                pass
            except Exception as error:
                told.put(("problem", {"error": f"The report could not be written ({type(error).__name__})."}))
                raise

        threading.Thread(target=write, daemon=True).start()
        kind = ""
        try:
            while kind not in ("end", "problem"):
                kind, content = await to_thread.run_sync(told.get)
                yield f"event: {kind}\ndata: {json.dumps(content)}\n\n"
        finally:
            left.set()

    def _cached(self, request: Request) -> tuple[StudyAnalysis, Sample | None]:
        return self._find(request.path_params["place"], request.path_params["name"])

    def _find(self, place: str, name: str) -> tuple[StudyAnalysis, Sample | None]:
        """The look of a study or of a dropped film."""
        with self._lock:
            if (place, name) in self._looks:
                self._looks.move_to_end((place, name))
                return self._looks[place, name]
        if place == UPLOADED:
            raise NotFound(f"This film is no longer held (the last {MAX_CACHED} are): drop it again.")
        sample = self._shelves.study(place, name)
        return self._cache((place, name), self._reader.analyze(sample.views, group_id(sample.study.group)), sample)

    def _cache(
        self, where: tuple[str, str], look: StudyAnalysis, sample: Sample | None
    ) -> tuple[StudyAnalysis, Sample | None]:
        with self._lock:
            self._looks[where] = look, sample
            while len(self._looks) > MAX_CACHED:
                self._looks.popitem(last=False)
        return look, sample

    def _describe(self, place: str, name: str) -> dict[str, Any]:
        """A look as the page's script reads it."""
        look, sample = self._find(place, name)
        stated = positives(sample.study) if sample else None
        findings = [
            {
                "name": finding,
                "probability": round(probability, 4),
                "threshold": round(self._reader.thresholds.get(finding, 0.5), 4),
                "stated": finding in stated if stated is not None else None,
            }
            for finding, probability in look.probabilities.items()
        ]
        return {
            "place": place,
            "name": name,
            "grid": self._reader.grid,
            "reference": sample.study.report if sample else None,
            "findings": findings,
            "films": [self._film(look, sample, number) for number in range(len(look.films))],
            "memory": look.retrieved(),
        }

    def _film(self, look: StudyAnalysis, sample: Sample | None, number: int) -> dict[str, Any]:
        masks = sample.masks if sample and number == 0 else {}
        maps = {
            finding: {
                "cells": np.round(look.map(number, finding), 3).tolist(),
                "heat": heat_url(look.map(number, finding).clip(max=1.0), top=1.0),
                "lesion": outline_url(letterbox(masks[finding], SHOWN_SIZE // 2)) if finding in masks else None,
            }
            for finding in FINDINGS
        }
        return {"image": film_url(look.films[number]), "maps": maps}


async def _body(request: Request) -> bytes:
    """The body, at most MAX_BYTES of it: refused by its announced length, or when it turns out to be longer."""
    announced = request.headers.get("content-length", "0")
    data = bytearray()
    if announced.isdecimal() and int(announced) <= MAX_BYTES:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BYTES:
                break
        else:
            if not data:
                raise UserError("This file is empty. Give a PNG, JPEG or DICOM file.")
            return bytes(data)
    raise HTTPException(413, f"This file is larger than {MAX_BYTES // 2**20} MB: too large for a film, not read.")


def _number(request: Request, name: str, kind: type) -> Any:
    try:
        value = kind(request.query_params[name])
    except (KeyError, ValueError):
        raise UserError(f"`{name}` must be a number") from None
    if value != value:
        raise UserError(f"`{name}` must be a number")
    return value


def _client_error(_: Request, error: Exception) -> Response:
    """What the reader can put right, as one line for the page."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, NotFound) else 422)


def _fail(_: Request, error: Exception) -> Response:
    """A fault of ours: the page names its kind, the terminal has the rest."""
    return JSONResponse({"error": f"Something went wrong here ({type(error).__name__}); the terminal says more."}, 500)


class _Headers:
    """Adds ``_HEADERS`` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *((name, value) for name, value in message["headers"] if name != b"cache-control"),
                    *((name.lower().encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
