"""Web application: one page and its JSON routes. All content comes from the package or the run."""

import dataclasses
import hashlib
import json
import queue
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from anyio import to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from amrg.banks.bank import NO_GROUP, patient_group_id
from amrg.data.context import CONTEXT_FIELDS, Context
from amrg.data.film_checks import NotAFilm
from amrg.data.gray_levels import FilmLevels
from amrg.data.image_io import FORMATS, decode_film_levels
from amrg.data.image_limits import MAX_SIDE
from amrg.data.image_ops import letterbox_to_square
from amrg.data.labels import FINDINGS
from amrg.data.own_studies import read_given_context, read_own_study
from amrg.data.studies import SPLITS, Study
from amrg.data.text.sections import mark_impression
from amrg.errors import UserError
from amrg.evaluation.highlight import FindingErrors, finding_segments
from amrg.inference.run_artifacts import RunArtifacts
from amrg.models.classifier import DiseaseClassifier
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.pages.overlays import film_data_url, heat_map_data_url, outline_data_url
from amrg.pages.retrieved_rows import USUAL
from amrg.webapp.comparison import ComparedRun, describe_comparison
from amrg.webapp.requests import RequestGuard, ResponseHeaders, without_folders
from amrg.webapp.run_store import NotFound, RunStore
from amrg.webapp.session import (
    MEMORIES,
    PRIOR,
    SHOWN_SIZE,
    ClientGone,
    EarlierStudy,
    InferenceSession,
    StudyAnalysis,
)

#: Maximal size of an uploaded file. A radiograph of 4,280 × 3,520 pixels in 16 bits has 30 MB.
MAX_BYTES = 64 * 2**20
#: Maximal size of the context of a study.
MAX_CONTEXT_BYTES = 64 * 2**10
#: Maximal number of cached analyses of studies, and of uploads, and size of the films of either. An evicted study is
#: analyzed again on request; an evicted upload is lost.
MAX_CACHED = 32
MAX_CACHED_BYTES = 512 * 2**20
UPLOADED = "dropped"
HERE = Path(__file__).parent


class Entry(NamedTuple):
    """A study or an upload that is held in memory.

    Attributes:
        analysis: analysis of its films.
        films: films in full resolution: as the run stores them, or with all gray levels of an uploaded file.
        study: study of the run; None for an upload.
        masks: true extent of findings on the first film.
    """

    analysis: StudyAnalysis
    films: list[FilmLevels]
    study: Study | None = None
    masks: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def size(self) -> int:
        """Bytes of the films."""
        return sum(film.index.nbytes for film in self.films)


def create_viewer_app(
    chain: RunArtifacts,
    hosts: Collection[str],
    any_address: bool = False,
    online: bool = False,
    compared: ComparedRun | None = None,
) -> ASGIApp:
    """Build the application for one run, and load its models.

    Args:
        chain: the run's artefacts.
        hosts, any_address: host names under which it answers (``RequestGuard``).
        online: as of ``RunStore``.
        compared: another run, whose reports are shown next to those of the run.

    Raises:
        UserError: an artefact is missing or damaged.
    """
    handlers = Handlers(chain, online, compared)
    app = Starlette(
        routes=[
            Route("/", handlers.page),
            Route("/api/studies", handlers.studies),
            Route("/api/looks", handlers.upload, methods=["POST"]),
            Route("/api/looks/{place}/{name}", handlers.analysis),
            Route("/api/looks/{place}/{name}/context", handlers.set_context, methods=["POST"]),
            Route("/api/looks/{place}/{name}/films/{number}", handlers.film),
            Route("/api/looks/{place}/{name}/patches", handlers.patches),
            Route("/api/looks/{place}/{name}/report", handlers.report),
            Route("/api/banks/{bank}/{row}", handlers.row),
            Route("/api/certainty", handlers.certainty),
            Route("/api/comparisons/{split}/{key}", handlers.comparison),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        exception_handlers={
            UserError: _client_error, HTTPException: _client_error, ClientDisconnect: _nobody, Exception: _fail
        },
    )  # fmt: skip
    return ResponseHeaders(RequestGuard(app, hosts, any_address))


class Handlers:
    """Request handlers with their state: the models, the run's data, and the cached analyses."""

    def __init__(self, chain: RunArtifacts, online: bool = False, compared: ComparedRun | None = None) -> None:
        self._chain, self._reader = chain, InferenceSession(chain)
        size, grid = self._reader.classifier.image_size, self._reader.grid
        self._store = RunStore(chain, size, grid, online, compared.reports if compared else {})
        self._compared = compared
        if compared:
            classifier = DiseaseClassifier.from_pretrained(compared.chain.stage1.path / "model")
            other_store = RunStore(compared.chain, classifier.image_size, classifier.encoder.grid, online)
            self._stores = self._store, other_store
        # Uploads have a cache of their own, so that browsing studies does not evict them.
        self._studies: OrderedDict[tuple[str, str], Entry] = OrderedDict()
        self._uploads: OrderedDict[tuple[str, str], Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.Lock()  # one upload at a time, as a film may take much memory while it is read
        loader = PackageLoader("amrg.webapp", ".")
        self._page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.j2")

    def page(self, _: Request) -> Response:
        """Return the page."""
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
                compared=self._compared,
                context=self._reader.context_fields,
                prior=PRIOR if self._reader.model.settings.prior else None,
                averaged=self._store.averaged,
                usual=USUAL,
                split=config.generate.split,
            )
        )

    def studies(self, request: Request) -> Response:
        """List the studies of a split whose texts hold the words, with the errors of their reports."""
        query = request.query_params
        start = _number(request, "start", int) if "start" in query else 0
        split, words, order = query.get("split", "test"), query.get("words", ""), query.get("order", "file")
        return JSONResponse(self._store.listing(split, words, order, max(0, start)))

    def analysis(self, request: Request) -> Response:
        """Describe one study."""
        return JSONResponse(self._describe(request.path_params["place"], request.path_params["name"]))

    async def upload(self, request: Request) -> Response:
        """Analyze an uploaded film, the body of the request; reading stops at ``MAX_BYTES``."""
        if request.headers.get("content-type") != "application/octet-stream":
            raise HTTPException(415, "Send the film's bytes as application/octet-stream.")
        data = await _body(request)
        return JSONResponse(await to_thread.run_sync(self._drop, data))

    def _drop(self, data: bytes) -> dict[str, Any]:
        try:
            with self._decoding:
                read = read_own_study([("", data)], SHOWN_SIZE, self._chain.frontal_only)
                stored = _pixel_levels(decode_film_levels(data, MAX_SIDE))
        except NotAFilm as error:
            raise UserError(f"This file is refused as no chest film for this model: {error}.") from None
        except ValueError as error:
            raise UserError(f"This file is no film that can be read: {error}. Give a {FORMATS} file.") from None
        name = hashlib.sha256(data).hexdigest()[:16]
        analysis = self._reader.analyze(read.films, NO_GROUP, read.context, read.views)
        self._cache((UPLOADED, name), Entry(analysis, [stored]))
        return self._describe(UPLOADED, name)

    async def set_context(self, request: Request) -> Response:
        """Set the clinical context of a study that is looked at, the JSON object of the body; it is stored nowhere."""
        data = await _body(request, MAX_CONTEXT_BYTES)
        return JSONResponse(await to_thread.run_sync(self._set_context, request, data))

    def _set_context(self, request: Request, data: bytes) -> dict[str, Any]:
        try:
            given = {str(name): str(text) for name, text in json.loads(data).items()}
        except (ValueError, AttributeError, RecursionError):
            raise UserError("The context must be a JSON object of texts.") from None
        if given.keys() - CONTEXT_FIELDS:
            raise UserError(f"The context may have {', '.join(CONTEXT_FIELDS)}.")
        context = read_given_context(given, "")
        entry = self._cached(request)
        place, name = request.path_params["place"], request.path_params["name"]
        informed = dataclasses.replace(entry.analysis, context=context)
        self._cache((place, name), entry._replace(analysis=informed))
        return self._context(context)

    def _context(self, context: Context) -> dict[str, str]:
        """Return the fields that the run reads."""
        return {name: context.text(name) for name in self._reader.context_fields}

    def _prior(self, earlier: EarlierStudy) -> dict[str, Any]:
        """Return what the run reads of an earlier study."""
        report = earlier.prior.report if "report" in self._reader.model.settings.prior else ""
        return {"days": earlier.prior.days, "report": report, "films": earlier.vision is not None}

    def patches(self, request: Request) -> Response:
        """List the patches of a film that a threshold keeps for a finding."""
        analysis = self._cached(request).analysis
        film, finding = _number(request, "film", int), request.query_params.get("finding", "")
        threshold = _number(request, "threshold", float)
        if finding not in FINDINGS or not 0 <= film < len(analysis.films):
            raise NotFound("this study has no such film or finding")
        found = self._reader.patches(analysis, film, finding, threshold)
        return JSONResponse([{"row": y, "column": x, "activation": round(value, 3)} for y, x, value in found])

    def film(self, request: Request) -> Response:
        """Return the levels of a film's pixels, row by row, then the gray value of each level.

        A level has one byte if there are at most 256, else two (little-endian).
        """
        films, number = self._cached(request).films, request.path_params["number"]
        if not number.isdecimal() or len(number) > 3 or int(number) >= len(films):
            raise NotFound("this study has no such film")
        film = films[int(number)]
        index = film.index if film.index.dtype == np.uint8 else film.index.astype("<u2", copy=False)
        return Response(index.tobytes() + film.gray.tobytes(), media_type="application/octet-stream")

    def row(self, request: Request) -> Response:
        """Describe one row of a bank."""
        row = request.path_params["row"]
        if not row.isdecimal() or len(row) > 18:
            raise NotFound("a row of a bank has a number")
        return JSONResponse(self._store.row(request.path_params["bank"], int(row)))

    def certainty(self, _: Request) -> Response:
        """Describe the words for probabilities."""
        return JSONResponse(self._store.certainty)

    def comparison(self, request: Request) -> Response:
        """Compare the reports that both runs have written of a study."""
        study = self._store.find(request.path_params["split"], request.path_params["key"])
        if self._compared is None or study.key not in self._compared.reports:
            raise NotFound("this study is not compared: only one of the runs has a report of it")
        return JSONResponse(describe_comparison(self._compared, self._stores, study))

    def report(self, request: Request) -> Response:
        """Stream server-sent events: those of ``InferenceSession.write``, then ``end`` or ``problem``."""
        entry = self._cached(request)
        off = {name for name in request.query_params.get("off", "").split(",") if name}
        if off - {*MEMORIES, PRIOR}:
            raise NotFound(f"no such memory: {', '.join(MEMORIES)} and {PRIOR} can be switched off")
        reference = mark_impression(**entry.study.sections) if entry.study else ""
        return StreamingResponse(self._events(entry.analysis, off, reference), media_type="text/event-stream")

    async def _events(self, analysis: StudyAnalysis, off: set[str], reference: str) -> AsyncIterator[str]:
        events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        left = threading.Event()
        sentences: list[str] = []

        def send_event(kind: str, content: dict[str, Any]) -> None:
            if left.is_set():
                raise ClientGone
            if kind == "text":
                sentences[:] = content["sentences"]
            if kind == "sentence":
                content = content | {"rows": self._store.with_lifts(content["rows"])}
            events.put((kind, content))

        def write() -> None:
            try:
                self._reader.write(analysis, off, send_event)
                events.put(("end", _against(reference, " ".join(sentences))))
            except ClientGone:
                pass
            except Exception as error:
                events.put(("problem", {"error": f"The report could not be written ({type(error).__name__})."}))
                raise

        threading.Thread(target=write, daemon=True).start()
        kind = ""
        try:
            while kind not in ("end", "problem"):
                kind, content = await to_thread.run_sync(events.get)
                yield f"event: {kind}\ndata: {json.dumps(content)}\n\n"
        finally:
            left.set()

    def _cached(self, request: Request) -> Entry:
        return self._find(request.path_params["place"], request.path_params["name"])

    def _find(self, place: str, name: str) -> Entry:
        """Return the analysis of a study or an uploaded film, from the cache if possible."""
        with self._lock:
            held = self._held(place)
            if (place, name) in held:
                held.move_to_end((place, name))
                return held[place, name]
        if place == UPLOADED:
            raise NotFound(f"This film is no longer held (the last {MAX_CACHED} are): drop it again.")
        sample = self._store.study(place, name)
        study = sample.study
        prior = None
        if found := self._reader.find_prior(place, name):
            earlier = self._store.sample(place, found.key)
            prior = self._reader.read_prior(found, earlier.views, earlier.study.views)
        analysis = self._reader.analyze(sample.views, patient_group_id(study.group), study.context, study.views, prior)
        films = [FilmLevels.of_gray(film) for film in sample.views]
        return self._cache((place, name), Entry(analysis, films, study, sample.masks))

    def _cache(self, where: tuple[str, str], entry: Entry) -> Entry:
        with self._lock:
            held = self._held(where[0])
            held[where] = entry
            while len(held) > 1 and (len(held) > MAX_CACHED or sum(e.size for e in held.values()) > MAX_CACHED_BYTES):
                held.popitem(last=False)
        return entry

    def _held(self, place: str) -> OrderedDict[tuple[str, str], Entry]:
        return self._uploads if place == UPLOADED else self._studies

    def _describe(self, place: str, name: str) -> dict[str, Any]:
        """Convert an analysis to the JSON of the page's script."""
        entry = self._find(place, name)
        analysis, study = entry.analysis, entry.study
        stated = study.positive_findings if study else None
        findings = [
            {
                "name": finding,
                "probability": round(probability, 4),
                "threshold": round(self._reader.thresholds.get(finding, 0.5), 4),
                "stated": finding in stated if stated is not None else None,
            }
            for finding, probability in analysis.probabilities.items()
        ]
        return {
            "place": place,
            "name": name,
            "grid": self._reader.grid,
            "reference": mark_impression(**study.sections) if study else None,
            "context": self._context(analysis.context),
            "prior": None if analysis.prior is None else self._prior(analysis.prior),
            "findings": findings,
            "films": [self._film(entry, number) for number in range(len(analysis.films))],
            "memory": self._store.with_lifts(analysis.retrieved()),
            "unlike_training": analysis.distance.get("unlike_training", False),
            "training_distance": analysis.distance.get("training_distance"),
            "training_distance_threshold": analysis.distance.get("training_distance_threshold"),
        }

    def _film(self, entry: Entry, number: int) -> dict[str, Any]:
        analysis, levels = entry.analysis, entry.films[number]
        masks = entry.masks if number == 0 else {}
        maps = {
            finding: {
                "cells": np.round(analysis.map(number, finding), 3).tolist(),
                "heat": heat_map_data_url(analysis.map(number, finding).clip(max=1.0), top=1.0),
                "lesion": outline_data_url(letterbox_to_square(masks[finding], SHOWN_SIZE // 2))
                if finding in masks
                else None,
            }
            for finding in FINDINGS
        }
        height, width = levels.index.shape
        return {
            "image": film_data_url(analysis.films[number]),
            "width": width,
            "height": height,
            "levels": len(levels.gray),
            "first": int(levels.values[0]),
            "maps": maps,
        }


def _pixel_levels(film: FilmLevels) -> FilmLevels:
    """Return the levels of a film if the page can show them, else those of its gray values."""
    count = len(film.values)
    consecutive = count <= 2**16 and film.values[-1] - film.values[0] == count - 1 and film.values[0] % 1 == 0
    if not consecutive:
        return FilmLevels.of_gray(film.film)
    return dataclasses.replace(film, index=film.index.astype(np.uint8 if count <= 256 else np.uint16, copy=False))


def _against(reference: str, generated: str) -> dict[str, Any]:
    """Compare a report with its reference, which is empty if there is none."""
    if not reference:
        return {"errors": None, "marks": None}
    marks = dict(zip(("reference", "generated"), finding_segments(reference, generated), strict=True))
    return {"errors": asdict(FindingErrors.of(reference, generated)), "marks": marks}


async def _body(request: Request, most: int = MAX_BYTES) -> bytes:
    """Read the body; refuses an announced or actual length above ``most``."""
    announced = request.headers.get("content-length", "0")
    data = bytearray()
    if announced.isdecimal() and int(announced) <= most:
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                break
        else:
            if not data:
                raise UserError(f"This file is empty. Give a {FORMATS} file.")
            return bytes(data)
    if most < MAX_BYTES:
        raise HTTPException(413, f"The context is longer than {most // 2**10} kB.")
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
    """Convert an error of the client to a JSON response of one line."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": without_folders(str(error))}, 404 if isinstance(error, NotFound) else 422)


def _nobody(_: Request, __: Exception) -> Response:
    """Return what nobody reads: the client left before its request was whole."""
    return Response(status_code=400)


def _fail(_: Request, error: Exception) -> Response:
    """Convert an internal error to a response with its type; the terminal has the traceback."""
    return JSONResponse({"error": f"Something went wrong here ({type(error).__name__}); the terminal says more."}, 500)
