"""What the tests share: one small Ray cluster for the whole session."""

import logging
import tempfile

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """Eight logical CPUs whatever the machine has, so that pools, reads and filters find room."""
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
