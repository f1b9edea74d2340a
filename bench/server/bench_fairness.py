"""What priority and fairness adds to a request that finds the level free.

pytest bench/server/bench_fairness.py
"""

import pytest

from fastkube.http.message import Request, Response
from fastkube.server import flowdefaults
from fastkube.server.fairness import Fairness
from fastkube.server.fairness.controller import LEVELS
from fastkube.server.metrics import Metrics
from fastkube.server.request import RequestInfo, User

USER = User("system:serviceaccount:default:app", ("system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"))
DONE = Response(200, b"{}")


class Stored:
    """A Reader of the default objects."""

    def list(self, resource, namespace=None):
        return flowdefaults.priority_levels() if resource is LEVELS else flowdefaults.flow_schemas()

    def on_change(self, resource, callback):
        pass


@pytest.fixture(scope="module")
def fairness():
    return Fairness(Stored(), Metrics(), 600, lambda info: 3000)


def request(verb):
    made = Request("GET", "/api/v1/namespaces/default/pods/a", {})
    made.user = USER
    made.info = RequestInfo(verb, made.path, True, "", "v1", "pods", "", "default", "a")
    return made


@pytest.mark.parametrize("verb", ["get", "create"])
def test_uncontended(benchmark, fairness, verb):
    made = request(verb)
    benchmark(fairness, made, lambda r: DONE)


def test_first_sight(benchmark, fairness):
    """A user's first request of a kind: all schemas are looked through."""
    info = request("get").info
    benchmark(fairness._look, USER, info)
