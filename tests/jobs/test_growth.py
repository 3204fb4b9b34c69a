"""What a cluster may grow to, on a head of `ray up` and in a pod of KubeRay; a real autoscaler is
in test_nodes.py."""

import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from jobs.cluster import growth

ROOT = Path(__file__).parents[2]
GIB = 2**30


def test_nodes_are_counted_as_often_as_they_may_be_started() -> None:
    nodes = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 16}, "max_workers": 3},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}},
    }
    assert growth({"max_workers": 5, "available_node_types": nodes}) == {"CPU": 88, "GPU": 5}
    assert growth({}) == {}


def limits(**environment: str) -> dict[str, float]:
    """What a driver with such an environment believes the cluster may grow to."""
    code = (
        "import json; from jobs import cluster as c; print(json.dumps(c.growth(c._autoscaling())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_head_of_ray_up_reads_its_cluster_file(tmp_path: Path) -> None:
    assert limits(HOME=str(tmp_path)) == {}
    (tmp_path / "ray_bootstrap_config.yaml").write_text((ROOT / "cluster.yaml").read_text())
    found = limits(HOME=str(tmp_path))
    assert found["GPU"] == 16 + 8 + 8 and found["CPU"] == 16 * 16 + 24 * 8 + 192
    assert found["accelerator_type:L4"] == 16 and found["memory"] > 1000 * GIB


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a pod whose API server, asked over TLS, has the cluster of the manifest."""
    manifest, _ = yaml.safe_load_all((ROOT / "deploy/kuberay.yaml").read_text())
    manifest["metadata"]["namespace"] = "faces"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/apis/ray.io/v1/namespaces/faces/rayclusters/raypipe":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(manifest).encode())

    certificate = str(certify(tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HOME": str(tmp_path),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port),
        "RAY_CLUSTER_NAME": "raypipe",
        "RAY_CLUSTER_NAMESPACE": "faces",
        "RAY_KUBERAY_CA_CERT_PATH": certificate,
        "RAY_KUBERAY_CLIENT_CERT_PATH": certificate,
        "RAY_KUBERAY_CLIENT_KEY_PATH": certificate,
    }
    server.shutdown()


def certify(folder: Path) -> Path:
    """A file with a key for 127.0.0.1 and a certificate that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.mark.slow
def test_a_driver_in_a_pod_of_kuberay_asks_for_its_manifest(kubernetes: dict[str, str]) -> None:
    found = limits(**kubernetes)
    assert found["GPU"] == 16 + 8 + 8 and found["CPU"] == 16 * 14 + 24 * 7 + 180
    assert found["accelerator_type:L40S"] == 8 and found["memory"] > 1000 * GIB
