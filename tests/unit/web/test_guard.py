# SPDX-License-Identifier: MIT
import os
import socket
import subprocess
import sys

import pytest

from procbus import EventBus
from procbus.web.guard import comes_from_own_user, policy_for
from tests.unit.web.conftest import Serve

ON_LINUX = sys.platform.startswith("linux")


def test_a_name_of_someone_else_for_this_machine_is_refused(serve: Serve) -> None:
    client = serve()

    for path in ("/", "/healthz", "/api/buses"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/healthz", headers={"Host": f"localhost:{client.base_url.port}"}).text == (
        "ok\n"
    )


def test_an_action_needs_the_token_in_its_header(serve: Serve) -> None:
    client = serve()
    path = "/api/buses/1/actions/pause"

    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {client.token}"},
        {"Authorization": client.token},
        {"Cookie": f"token={client.token}"},
    ):
        refused = client.post(path, json={"kind": "io"}, headers=headers)
        assert refused.status_code == 401
        assert "token" in refused.json()["error"]
    assert client.post(f"{path}?token={client.token}").status_code == 401
    let_in = client.post(path, headers={"Authorization": f"Bearer {client.token}"})
    assert let_in.status_code == 404  # there is no such bus


def test_no_page_of_elsewhere_may_read_or_embed_an_answer(serve: Serve) -> None:
    answer = serve().get("/api/buses", headers={"Origin": "http://evil.example"})

    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "set-cookie" not in answer.headers


def test_a_header_does_not_make_another_user_of_the_other_end(serve: Serve) -> None:
    client = serve()
    if not ON_LINUX:
        pytest.skip("elsewhere all need the token")

    assert client.get("/api/buses").status_code == 200
    forwarded = client.get("/api/buses", headers={"X-Forwarded-For": "10.1.2.3"})
    assert forwarded.status_code == 200  # it is not believed, neither to let in nor to refuse


@pytest.mark.skipif(not ON_LINUX or os.geteuid() != 0, reason="needs a second user")
def test_another_user_of_the_machine_needs_the_token(serve: Serve) -> None:
    with EventBus([], live=True):
        client = serve()
        script = (
            "import encodings.idna, http.client, os, sys\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "for path in ('/api/buses', '/healthz'):\n"
            "    for token in ('', sys.argv[2]):\n"
            "        asked = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]))\n"
            "        asked.request('GET', path, headers={'Authorization': f'Bearer {token}'})\n"
            "        print(asked.getresponse().status)\n"
        )
        port = str(client.base_url.port)
        asked = subprocess.run(
            [sys.executable, "-S", "-c", script, port, client.token],
            capture_output=True,
            text=True,
            timeout=150,
        )

    assert asked.stdout.split() == ["403", "200", "200", "200"], asked.stderr


@pytest.mark.skipif(not ON_LINUX, reason="Linux has a table of sockets")
def test_the_user_at_the_other_end_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = listener.getsockname()
        with socket.create_connection(server) as sock:
            assert comes_from_own_user(sock.getsockname(), server)
            assert not comes_from_own_user(("127.0.0.1", 1), server)
            assert not comes_from_own_user(("testclient", 1), server)


def test_only_the_scripts_and_styles_of_the_page_are_allowed() -> None:
    policy = policy_for("<style>a</style><script>b</script>")

    assert "default-src 'none'" in policy
    assert "script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='" in policy
    assert "unsafe" not in policy
