"""Studies in the bodies of requests: multipart/form-data and application/json."""

import base64
import binascii
import re
from dataclasses import dataclass, field
from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amrg.data.context import CONTEXT_FIELDS
from amrg.data.own_studies import MAX_FILMS
from amrg.errors import UserError

MULTIPART, JSON = "multipart/form-data", "application/json"
#: Maximal length of the name of a study or film, in characters.
MAX_NAME = 256
#: Maximal length of a field of the clinical context, in characters.
MAX_TEXT = 4096
_MAX_PARTS = 2 * MAX_FILMS + 4 + len(CONTEXT_FIELDS)  # films of both studies, `study`, `force`, context, earlier report
#: Texts of the earlier study.
PRIOR_FIELDS = ("prior_report", "prior_days")
_TRUE, _FALSE = ("true", "1"), ("false", "0", "")


@dataclass(frozen=True)
class ReceivedStudy:
    """A study as a client sent it.

    Attributes:
        name: its name in the answer.
        films: name, which may be empty, and bytes of each film.
        force: write also for what is refused as no chest film.
        context: clinical context as it was sent.
        prior: ``PRIOR_FIELDS`` as they were sent.
        prior_films: as ``films``, of the earlier study.
    """

    name: str
    films: list[tuple[str, bytes]]
    force: bool
    context: dict[str, str]
    prior: dict[str, str] = field(default_factory=dict)
    prior_films: list[tuple[str, bytes]] = field(default_factory=list)


class _Film(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field("", max_length=MAX_NAME)
    data: str


class _Study(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    study: str = Field("", max_length=MAX_NAME)
    films: list[_Film] = Field(max_length=MAX_FILMS)
    force: bool = False
    indication: str = Field("", max_length=MAX_TEXT)
    technique: str = Field("", max_length=MAX_TEXT)
    comparison: str = Field("", max_length=MAX_TEXT)
    age: str = Field("", max_length=MAX_TEXT)
    sex: str = Field("", max_length=MAX_TEXT)
    prior_report: str = Field("", max_length=MAX_TEXT)
    prior_days: str = Field("", max_length=MAX_TEXT)
    prior_films: list[_Film] = Field([], max_length=MAX_FILMS)


def parse_study_request(content_type: str, body: bytes) -> ReceivedStudy:
    """Parse a body of the type ``MULTIPART`` or ``JSON``.

    Raises:
        UserError: it is malformed, or has no film, too many films, or an empty one.
    """
    received = _from_json(body) if parse_media_type(content_type) == JSON else _from_multipart(content_type, body)
    if not received.films:
        raise UserError("no film: give at least one, as a part named `film` or in the list `films`")
    for films in (received.films, received.prior_films):
        if len(films) > MAX_FILMS:
            raise UserError(f"more than the {MAX_FILMS} films that a study may have: send one study at a time")
        for number, (name, data) in enumerate(films, 1):
            if not data:
                raise UserError(f"{name or f'film {number}'} is empty")
    return received


def parse_media_type(header: str) -> str:
    """Return the type in a Content-Type header without its parameters, in lower case."""
    return header.partition(";")[0].strip().lower()


def _from_json(body: bytes) -> ReceivedStudy:
    try:
        study = _Study.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise UserError(f"{where}: {first['msg']}") from None
    context, prior = ({name: getattr(study, name) for name in names} for names in (CONTEXT_FIELDS, PRIOR_FIELDS))
    films, prior_films = _decoded(study.films), _decoded(study.prior_films)
    return ReceivedStudy(study.study, films, study.force, context, prior, prior_films)


def _decoded(given: list[_Film]) -> list[tuple[str, bytes]]:
    films = []
    for number, film in enumerate(given, 1):
        try:
            films.append((film.name, base64.b64decode(film.data, validate=True)))
        except (binascii.Error, ValueError):
            raise UserError(f"{film.name or f'film {number}'}: `data` is not base64") from None
    return films


def _from_multipart(content_type: str, body: bytes) -> ReceivedStudy:
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if not boundary or len(boundary) > 70 or not boundary.isascii():  # RFC 2046, section 5.1.1
        raise UserError("Content-Type multipart/form-data has no valid boundary")
    _, *parts = re.split(b"(?:^|\r\n)--" + re.escape(boundary.encode()), body, maxsplit=_MAX_PARTS + 1)
    if not parts or not parts[-1].startswith(b"--"):
        raise UserError(f"the form is cut off, or has more than {_MAX_PARTS} parts")
    name, force = "", "false"
    films: dict[str, list[tuple[str, bytes]]] = {"film": [], "prior_film": []}
    texts: dict[str, str] = {}
    for part in parts[:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        headers = HeaderParser().parsestr(head.lstrip(b" \t\r\n").decode(errors="replace"))
        field = headers.get_param("name", header="content-disposition")
        if not blank or not isinstance(field, str):
            raise UserError("a part of the form has no name")
        if (kind := field.removesuffix("s")) in films:
            file = headers.get_param("filename", "", header="content-disposition")
            films[kind].append((collapse_rfc2231_value(file)[:MAX_NAME], content))
        elif field == "study":
            name = content.decode(errors="replace")
        elif field == "force":
            force = content.decode(errors="replace").strip().lower()
        elif field in (*CONTEXT_FIELDS, *PRIOR_FIELDS):
            texts[field] = content.decode(errors="replace")
            if len(texts[field]) > MAX_TEXT:
                raise UserError(f"{field}: longer than {MAX_TEXT} characters")
        else:
            known = ", ".join(("study", "force", *CONTEXT_FIELDS, *PRIOR_FIELDS))
            raise UserError(f"no such field: {field[:MAX_NAME]}; there are film, prior_film, {known}")
    if len(name) > MAX_NAME:
        raise UserError(f"study: longer than {MAX_NAME} characters")
    if force not in (*_TRUE, *_FALSE):
        raise UserError("force must be true or false")
    prior = {name: texts.pop(name) for name in PRIOR_FIELDS if name in texts}
    return ReceivedStudy(name, films["film"], force in _TRUE, texts, prior, films["prior_film"])
