"""``amrg view RUN``: browse films, maps, memory and reports of a run in a web application."""

import argparse
import ipaddress
import socket
from pathlib import Path

from amrg.errors import UserError
from amrg.inference.run_artifacts import BANKS, BASE_MODEL, find_run_artifacts
from amrg.progress import print_on_rank_0

PORT = 8017
LOOPBACK = "127.0.0.1"


def main(arguments: list[str]) -> None:
    """Serve the page until it is interrupted."""
    parser = argparse.ArgumentParser(prog="amrg view", description=__doc__)
    parser.add_argument("run", type=Path, help="runs/NAME, or one of its scores, reports or stage2 artefacts")
    parser.add_argument(
        "--host", default=LOOPBACK, help=f"address to listen on (default: {LOOPBACK}, this machine only)"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default: {PORT})")
    parser.add_argument(
        "--online", action="store_true", help="read films that the run keeps at a URL (`amrg mirror`) from there"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="OTHER", help="another run of the same studies: show its reports too"
    )
    parser.add_argument("--bank", **BANKS)
    parser.add_argument("--decoder.model", **BASE_MODEL)
    options = parser.parse_args(arguments)
    chain = find_run_artifacts(options.run, options.base_model, options.bank)
    try:
        import uvicorn

        from amrg.webapp.comparison import ComparedRun
        from amrg.webapp.server import create_viewer_app
    except ModuleNotFoundError as error:
        raise UserError(f"the viewer needs {error.name}: pip install 'amrg[viewer]'") from None
    compared = ComparedRun.open(chain, find_run_artifacts(options.compare)) if options.compare else None
    if compared:
        print_on_rank_0(compared.note)
    with bind_server_socket(options.host, options.port) as listening:
        print_on_rank_0(f"loading {chain.stage2.path}")
        local = is_loopback_host(options.host)
        names = {LOOPBACK, "localhost"} if local else {socket.gethostname().lower(), socket.getfqdn().lower()}
        hosts = {options.host.lower(), *names}
        app = create_viewer_app(chain, hosts, any_address=not local, online=options.online, compared=compared)
        if not local:
            print_on_rank_0(
                f"anyone who reaches this machine at {options.host} can read the films and reports of this run"
            )
        host = f"[{options.host}]" if ":" in options.host else options.host
        print_on_rank_0(f"the viewer is at http://{host}:{listening.getsockname()[1]} (Ctrl-C stops it)")
        # Addresses of studies are no matter for a log, so requests are not logged.
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        try:
            uvicorn.Server(config).run([listening])
        except KeyboardInterrupt:
            print_on_rank_0("stopped")


def bind_server_socket(host: str, port: int) -> socket.socket:
    """Listen on an address; raises UserError where that is not possible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise UserError(f"cannot listen on {host}:{port} ({reason}): choose another with --port or --host") from None


def is_loopback_host(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
