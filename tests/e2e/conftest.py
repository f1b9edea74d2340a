"""One cluster for all end-to-end tests; each test works in a namespace of its own."""

import itertools
import os
import shutil
import subprocess

import pytest

from tests.e2e.cluster import Cluster, Namespace

WANTED = ("containerd", "runc", "nft", "kubectl", "nsenter", "ip")


def pytest_collection_modifyitems(items):
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.fspath).startswith(here):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(300))


def require_machine():
    missing = [b for b in WANTED if shutil.which(b) is None]
    if os.geteuid() != 0 or missing:
        reason = f"needs root and {', '.join(missing or WANTED)}"
        if os.environ.get("FASTKUBE_TESTS_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def netns():
    require_machine()
    namespace = Namespace(f"fke2e-{os.getpid()}")
    yield namespace
    namespace.delete()


@pytest.fixture(scope="session")
def cluster(netns, tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("e2e") / "data", netns)
    line = cluster.start()
    assert "ready" in line
    cluster.import_images("nginx:1", "busybox:1")
    yield cluster
    cluster.down()


_numbers = itertools.count(1)


@pytest.fixture
def ns(cluster, request):
    """A fresh namespace, and kubectl's default while the test runs."""
    name = f"t{next(_numbers)}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("config", "set-context", "--current", f"--namespace={name}")
    yield name
    if request.session.testsfailed:
        print(cluster.kubectl("get", "all,events", "-n", name, "-o", "wide", check=False))
    cluster.kubectl("config", "set-context", "--current", "--namespace=default")
    subprocess.run(
        [*cluster.namespace.enter, cluster.kubectl_binary, "delete", "namespace", name, "--wait=false"], env=cluster.environment, capture_output=True
    )
