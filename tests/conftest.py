"""What the tests share: one S3 server and one small Ray cluster for the whole session."""

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# What pytest's `pythonpath` is for this process, for those that the tests start, Ray's workers too.
_ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (_ROOT, _ROOT / "tests", _ROOT / "tests/jobs")))
# Ray Train takes one checkpoint a poll; with its two seconds short trainings mostly wait.
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"

# The same examples in every run: a change is tested, not the draw.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def one_thread():
    """PyTorch with one thread: tiny networks are slower with two, and round otherwise."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def s3_bucket():
    """URI of a bucket on a real S3 server on loopback; its address goes through the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        RAYPIPE_CACHE=tempfile.mkdtemp(prefix="cache"),
    )
    boto3.client("s3").create_bucket(Bucket="faces")
    yield "s3://faces"
    server.stop()
    shutil.rmtree(os.environ["RAYPIPE_CACHE"])


@pytest.fixture(scope="session")
def ray_cluster(s3_bucket):
    """Eight logical CPUs whatever the machine has, so that pools, reads and filters find room.

    Started after the S3 server, so that the workers inherit its address.
    """
    import ray

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        ray.init(
            address="local",
            num_cpus=8,
            object_store_memory=400 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
