"""The description of the interface as a page: Swagger UI on ``/openapi.json``, without a network.

Its files are those that the package flask-swagger-ui ships (the extra ``swagger``); the package itself is not imported.
"""

from importlib.util import find_spec
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

_PACKAGE = "flask_swagger_ui"
START = "start.js"
#: Files under ``/docs/``.
FILES = ("swagger-ui.css", "swagger-ui-bundle.js", START)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AM-MRG: HTTP interface</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
#: Without a validator, which would send the address of the server to another one.
_START = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", validatorUrl: null});'


def docs_page(_: Request) -> Response:
    """Return the page."""
    _folder()
    return HTMLResponse(_PAGE)


def docs_file(request: Request) -> Response:
    """Return one of the page's ``FILES``."""
    file = request.path_params["file"]
    if file not in FILES:
        raise HTTPException(404)
    if file == START:
        return Response(_START, media_type="text/javascript")
    return FileResponse(_folder() / file)


def _folder() -> Path:
    """Return the folder of Swagger UI's files; raises 404 if they are not installed."""
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise HTTPException(404, "this page is not installed here: pip install 'amrg[swagger]'; see /openapi.json")
    return Path(found.origin).parent / "dist"
