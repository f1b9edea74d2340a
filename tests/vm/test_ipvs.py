"""IPVS on a real kernel, in a virtual machine: the tests of guest_ipvs.py run inside."""

from __future__ import annotations

import sys

import pytest

from fastkube.testing import vm
from tests.proxy.netns import skip

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]
PYTEST = f"exec {sys.executable} -m pytest -q -x -p no:cacheprovider -p no:benchmark --timeout=300"


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    lacking = vm.missing()
    if lacking:
        skip(f"no virtual machine here: {lacking}")


def test_services_through_ipvs() -> None:
    result = vm.run(f"{PYTEST} tests/vm/guest_ipvs.py", seconds_max=800)
    assert result.code == 0, result.output
    print(result.output)


def test_services_through_nftables_on_debians_kernel() -> None:
    """The same tests as on this machine's kernel, on the one that most nodes have."""
    result = vm.run(f"{PYTEST} tests/proxy/test_nftables.py", seconds_max=800)
    assert result.code == 0, result.output


def test_a_cluster_with_real_pods_on_ipvs() -> None:
    """`fastkube up` in the machine, two pods of nginx behind a Service."""
    result = vm.run(f"exec {sys.executable} -m tests.vm.guest_up", memory_mib=4096, seconds_max=800)
    print(result.output)
    assert result.code == 0 and "ALL SHOWN" in result.output, result.output
