"""Drains the node it runs on, once the cloud announces that it takes the node away.

    python -m jobs.drain {aws,gcp} HEAD:PORT

No autoscaler that comes with Ray 2.60 asks for the announcement. `cluster.yaml` and
`deploy/gcp.yaml` start this on every worker, beside `ray start`. A drained node gets no new actor
and no further rows, what it works on it may finish, and its end is no failure of an actor. Pods do
without: told to end, `ray start --block` drains its node itself.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from typing import Protocol

from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.core.generated.gcs_pb2 import GcsNodeInfo

_PERIOD = 2  # seconds between two questions; AWS advises at most five
_TIMEOUT = 5


class Cloud(Protocol):
    """The metadata service of a cloud, as the node it describes sees it."""

    def address(self) -> str:
        """The node's address in the cluster's network, by which Ray knows it."""
        ...

    def deadline(self) -> float | None:
        """When the node is taken away, in seconds since 1970; none: it is not announced."""
        ...


class Aws:
    """EC2's instance metadata service, version 2; spot instances are told two minutes ahead."""

    def __init__(self) -> None:
        # As every SDK of AWS has it.
        self._root = os.environ.get(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254"
        ).rstrip("/")

    def address(self) -> str:
        return self._get("local-ipv4")

    def deadline(self) -> float | None:
        try:
            notice = json.loads(self._get("spot/instance-action"))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return datetime.fromisoformat(notice["time"]).timestamp()

    def _get(self, path: str) -> str:
        token = _fetch(
            f"{self._root}/latest/api/token",
            {"X-aws-ec2-metadata-token-ttl-seconds": "60"},
            method="PUT",
        )
        url = f"{self._root}/latest/meta-data/{path}"
        return _fetch(url, {"X-aws-ec2-metadata-token": token})


class Gcp:
    """Google Cloud's metadata server; spot machines are told 30 seconds ahead."""

    _NOTICE = 30

    def __init__(self) -> None:
        # As every client library of Google's has it.
        host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
        self._root = f"http://{host}/computeMetadata/v1/instance"

    def address(self) -> str:
        return self._get("network-interfaces/0/ip")

    def deadline(self) -> float | None:
        return time.time() + self._NOTICE if self._get("preempted") == "TRUE" else None

    def _get(self, path: str) -> str:
        return _fetch(f"{self._root}/{path}", {"Metadata-Flavor": "Google"})


CLOUDS: dict[str, type[Cloud]] = {"aws": Aws, "gcp": Gcp}


def _fetch(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    # Metadata services are on the node's own link: no proxy leads there.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT) as answer:
        return str(answer.read().decode().strip())


def wait(cloud: Cloud) -> float:
    """Waits for the announcement; returns the deadline, in seconds since 1970."""
    while True:
        try:
            if (deadline := cloud.deadline()) is not None:
                return deadline
        except OSError as error:  # it answers again sooner or later, and nobody else can be asked
            print(f"metadata service: {error}", flush=True)
        time.sleep(_PERIOD)


def drain(head: str, address: str, deadline: float) -> str:
    """Tells the head of a cluster that the node at an address ends.

    Args:
        head: "HOST:PORT".
        deadline: seconds since 1970.

    Returns:
        the node's ID.

    Raises:
        LookupError: where no node is at the address.
        RuntimeError: where the head refuses.
    """
    client = GcsClient(address=head)
    for node in client.get_all_node_info().values():
        if node.node_manager_address == address and node.state == GcsNodeInfo.ALIVE:
            node_id = str(node.node_id.hex())
            break
    else:
        raise LookupError(f"{head} knows no node at {address}")
    # Until the deadline; with this reason the head does not refuse a node that is busy.
    accepted, refusal = client.drain_node(
        node_id,
        DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        "the cloud takes the node away",
        int(deadline * 1000),
    )
    if not accepted:
        raise RuntimeError(f"{head} refuses to drain {node_id}: {refusal}")
    return node_id


def main(cloud: str, head: str) -> None:
    """Waits for the announcement, and drains."""
    service = CLOUDS[cloud]()
    address = service.address()
    print(f"watching for the end of {address}", flush=True)
    deadline = wait(service)
    node_id = drain(head, address, deadline)
    print(f"drained {node_id}, which ends in {deadline - time.time():.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
