"""The load test: 3,000 pods of one Deployment on 100 simulated nodes, everything on. Prints what `python -m bench.cluster.pods` prints."""

import pytest

from bench.cluster.pods import measure


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_thousand_pods_on_a_hundred_hollow_nodes(capsys):
    result = measure(pods=3000, nodes=100)
    with capsys.disabled():
        print("\n" + result.table())
    assert {"apiserver and store", "controller-manager", "scheduler", "hollow"} <= set(result.parts)
    assert result.running_seconds > 0 and result.deleted_seconds > 0
