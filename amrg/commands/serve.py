"""``amrg serve RUN``: answer films with reports over HTTP.

POST a study's films to /v1/reports; /openapi.json describes every route, docs/serving.md the rest. Studies that wait
are written together by one process, which is started again if it fails. Nothing of films or reports is logged or kept.
"""

import argparse
import logging
import os
import socket
import warnings
from contextlib import closing
from pathlib import Path

from amrg.commands.view import LOOPBACK, bind_server_socket, is_loopback_host
from amrg.errors import UserError
from amrg.inference.run_artifacts import BANKS, BASE_MODEL, find_run_artifacts
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.progress import print_on_rank_0

PORT = 8018
TOKEN = "AMRG_TOKEN"
#: Requests that are in work at once, and seconds of each.
QUEUE, SECONDS = 64, 60.0


def main(arguments: list[str]) -> None:
    """Serve until it is interrupted."""
    options = _parser().parse_args(arguments)
    token = _token(options.token_file)
    local = is_loopback_host(options.host)
    if not (local or token or options.no_token):
        raise UserError(
            f"--host {options.host} lets others send films: give --token-file FILE or {TOKEN}, or --no-token to ask "
            "for none"
        )
    if token and options.no_token:
        raise UserError(f"--no-token, but there is a token in --token-file or {TOKEN}")
    chain = find_run_artifacts(options.run, options.base_model, options.bank)
    most = chain.config.generate.batch_size
    batch_size = options.batch_size or most
    if not 1 <= batch_size <= most:
        raise UserError(f"--batch-size {options.batch_size}: at least 1 and at most generate.batch_size {most}")
    if options.queue < 1 or options.seconds <= 0:
        raise UserError("--queue and --seconds must be above 0")
    try:
        import uvicorn

        from amrg.serving.api import PATHS, Access, create_serving_app
        from amrg.serving.batching import Batcher
        from amrg.serving.metrics import Metrics
        from amrg.serving.worker import worker_process
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: pip install 'amrg[serve]'") from None
    warnings.simplefilter("ignore")  # those of decoders quote patient data of films
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    embedded = [EMBEDDED_DATA_NOTICE] if chain.config.data.source == "openi_drr" else []
    for warning in (NOT_CLINICAL_NOTICE, *embedded, *chain.warnings):
        print_on_rank_0(warning)
    names = {LOOPBACK, "localhost"} if local else {socket.gethostname().lower(), socket.getfqdn().lower()}
    access = Access(token, options.allow_origin, {options.host.lower(), *names}, any_address=not local)
    metrics = Metrics(PATHS)
    opened = (chain.reports or chain.stage2).path
    with bind_server_socket(options.host, options.port) as listening:
        print_on_rank_0(f"loading {chain.stage2.path}")
        batcher = Batcher(
            lambda: worker_process(opened, options.base_model, options.seconds, options.bank),
            batch_size,
            metrics.add_batch,
        )
        with closing(batcher):
            if not (local or token):
                print_on_rank_0(f"anyone who reaches this machine at {options.host} can send films")
            host = f"[{options.host}]" if ":" in options.host else options.host
            print_on_rank_0(f"serving at http://{host}:{listening.getsockname()[1]} (Ctrl-C stops it)")
            app = create_serving_app(chain, batcher, metrics, access, options.queue, options.seconds)
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
            try:
                uvicorn.Server(config).run([listening])
            except KeyboardInterrupt:
                print_on_rank_0("stopped")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amrg serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="runs/NAME, or one of its scores, reports or stage2 artefacts")
    parser.add_argument(
        "--host", default=LOOPBACK, help=f"address to listen on (default: {LOOPBACK}, this machine only)"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default: {PORT})")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=f"holds the bearer token (or {TOKEN} does)")
    parser.add_argument("--no-token", action="store_true", help="ask for no token although --host is not loopback")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="let pages of https://NAME call the interface (CORS; may be repeated; default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, metavar="N",
        help="most studies written at once (default: the run's generate.batch_size; 1: each study alone)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=int, default=QUEUE, metavar="N", help=f"most requests in work at once (default: {QUEUE})"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"time limit of a request (default: {SECONDS:g})"
    )
    parser.add_argument("--bank", **BANKS)
    parser.add_argument("--decoder.model", **BASE_MODEL)
    return parser


def _token(path: Path | None) -> str | None:
    """Return the token of a file, or of the environment; None if there is none.

    Raises:
        UserError: the file cannot be read, or the token is empty or no single line of printable ASCII.
    """
    try:
        token = os.environ.get(TOKEN) if path is None else path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path} cannot be read ({getattr(error, 'strerror', 'no text')})") from None
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"the token in {path or TOKEN} must be one word of ASCII characters")
    return token
