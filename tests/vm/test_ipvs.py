"""IPVS on a real kernel, in a virtual machine: the tests of guest_ipvs.py run inside."""

from __future__ import annotations

import sys

import pytest

from fastkube.testing import vm

pytestmark = [pytest.mark.vm, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    lacking = vm.missing()
    if lacking:
        pytest.skip(f"no virtual machine here: {lacking}")


def test_services_through_ipvs() -> None:
    result = vm.run(f"exec {sys.executable} -m pytest tests/vm/guest_ipvs.py -q -x -p no:cacheprovider -p no:benchmark --timeout=200")
    assert result.code == 0, result.output
    print(result.output)


def test_a_cluster_with_real_pods_on_ipvs() -> None:
    """`fastkube up` in the machine, two pods of nginx behind a Service."""
    result = vm.run(f"exec {sys.executable} -m tests.vm.guest_up", memory_mib=4096, seconds_max=600)
    print(result.output)
    assert result.code == 0 and "ALL SHOWN" in result.output, result.output
