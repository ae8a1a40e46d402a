import re
import socket

import pytest
import uvicorn
from starlette.testclient import TestClient

from amrg.commands.view import bind_server_socket, main
from amrg.errors import UserError


def test_what_cannot_be_served_is_one_line(tmp_path, folder):
    with pytest.raises(UserError, match="no run at"):
        main([str(tmp_path / "nowhere")])
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(UserError, match=r"cannot listen on 127.0.0.1:\d+ .*choose another with --port"):
        main([str(folder), "--port", str(taken.getsockname()[1])])
    with pytest.raises(UserError, match="cannot listen on"):
        main([str(folder), "--port", "99999"])


def test_ipv6_addresses_can_be_listened_on():
    with bind_server_socket("::1", 0) as listening, socket.create_connection(listening.getsockname()[:2], timeout=5):
        assert listening.family is socket.AF_INET6


def test_the_page_is_served_at_an_ipv6_address(folder, capsys, monkeypatch):
    """The address that is printed answers as it stands, brackets included."""
    answers = []

    def serve(server, sockets):
        address = re.search(r"the viewer is at (\S+)", capsys.readouterr().err)[1]
        host, port = re.fullmatch(r"http://\[(.+)\]:(\d+)", address).groups()
        assert (host, int(port)) == sockets[0].getsockname()[:2]
        answers.append(TestClient(server.config.app, base_url=address).get("/").status_code)

    monkeypatch.setattr(uvicorn.Server, "run", serve)
    main([str(folder), "--host", "::1", "--port", "0"])
    assert answers == [200]
