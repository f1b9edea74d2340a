import pytest

from tests.hollow import HollowCluster


@pytest.fixture(scope="session")
def hollow(tmp_path_factory):
    cluster = HollowCluster(tmp_path_factory.mktemp("clients") / "data")
    cluster.start()
    yield cluster
    cluster.stop()
