"""The announcements of both clouds, spoken over real HTTP; test_nodes.py drains a node with one."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.drain import Aws, Gcp, wait


class Metadata(ThreadingHTTPServer):
    """The metadata services of AWS (version 2: only with a token) and Google Cloud.

    Attributes:
        ip: the node's own address.
        notice: when the node ends, in seconds since 1970; none: not announced.
        broken: answers that are errors of the service from now on.
    """

    def __init__(self, ip: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ip = ip
        self.notice: float | None = None
        self.broken = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token"
        life = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0))
        self._answer("a-token" if asked and life else None)

    def do_GET(self) -> None:
        server = self.server
        if server.broken:
            server.broken -= 1
            self.send_error(503)
            return
        root, _, path = self.path.partition("/meta-data/")
        if root == "/latest":
            if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
                self.send_error(401)
                return
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(server.notice or 0))
            notice = json.dumps({"action": "terminate", "time": at}) if server.notice else None
            self._answer({"local-ipv4": server.ip, "spot/instance-action": notice}.get(path))
            return
        if self.headers.get("Metadata-Flavor") != "Google":
            self.send_error(403)
            return
        path = self.path.removeprefix("/computeMetadata/v1/instance/")
        preempted = "TRUE" if server.notice else "FALSE"
        self._answer({"network-interfaces/0/ip": server.ip, "preempted": preempted}.get(path))

    def _answer(self, text: str | None) -> None:
        if text is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    server = Metadata("10.1.2.3")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{server.host}/")
    monkeypatch.setenv("GCE_METADATA_HOST", server.host)
    yield server
    server.shutdown()


def test_the_notice_of_aws_says_when(metadata: Metadata) -> None:
    cloud = Aws()
    assert cloud.address() == "10.1.2.3"
    assert cloud.deadline() is None
    metadata.notice = 1_800_000_000
    assert cloud.deadline() == 1_800_000_000


def test_the_notice_of_google_cloud_is_half_a_minute_ahead(metadata: Metadata) -> None:
    cloud = Gcp()
    assert cloud.address() == "10.1.2.3"
    assert cloud.deadline() is None
    metadata.notice = time.time()
    found = cloud.deadline()
    assert found is not None and found == pytest.approx(time.time() + 30, abs=5)


def test_a_service_that_fails_for_a_moment_is_asked_again(
    metadata: Metadata, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata.notice = 1_800_000_000
    metadata.broken = 1
    assert wait(Aws()) == 1_800_000_000
    assert "503" in capsys.readouterr().out
