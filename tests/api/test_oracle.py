"""`fastkube.api` held against upstream's recorded answers (Kubernetes 1.36.2): creates and updates of every GA kind, without a server."""

import pytest

from tests.api import oracle

pytestmark = pytest.mark.skipif(not oracle.REFERENCE.exists(), reason="the recording lies in ../shared")


@pytest.fixture(scope="module")
def outcome():
    return oracle.score()


# Percent of the cases that agree; these only ever rise.
FLOORS = {"code": 100.0, "why": 99.9, "whole": 99.8}


@pytest.mark.parametrize("level", FLOORS)
def test_agrees_with_upstream(outcome, level):
    counts, differ = outcome
    assert counts["cases"] > 2500
    share = 100 * counts[level] / counts["cases"]
    assert share >= FLOORS[level], [d["id"] for d in differ if d["level"] in list(FLOORS)[: list(FLOORS).index(level) + 1]][:40]
