"""KubeSchedulerConfiguration: what it says holds, what it says wrongly is refused by name."""

import pytest
import yaml

from fastkube.scheduler.config import API_VERSION, Config, ConfigError, load
from fastkube.scheduler.podinfo import Templates
from fastkube.scheduler.snapshot import Failure, Snapshot


def loaded(tmp_path, **said):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": API_VERSION, "kind": "KubeSchedulerConfiguration", **said}))
    return load(path, Config(kubeconfig="k"))


def fit(**strategy):
    return [{"pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": strategy}}]}]


def decision(profile, cpus=("1", "3"), cpu="500m", **spec):
    snapshot, templates = Snapshot(), Templates()

    def pod(name, cpu, **spec):
        body = {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}], **spec}
        return templates.pod({"metadata": {"name": name, "namespace": "d"}, "spec": body})

    for i, used in enumerate(cpus):
        node = {"metadata": {"name": f"n{i}"}, "spec": {"unschedulable": i == 1}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}}
        snapshot.set_node(node)
        snapshot.add_pod(pod(f"p{i}", used), f"n{i}")
    return snapshot.decide(pod("in", cpu, tolerations=[{"operator": "Exists"}], **spec), 1, profile)


def test_strategies_choose_differently(tmp_path):
    def profile(**strategy):
        profiles = loaded(tmp_path, profiles=fit(**strategy)).profiles
        profiles[0].weights.pop("NodeResourcesBalancedAllocation")
        return profiles[0]

    cpu = [{"name": "cpu", "weight": 1}]
    assert decision(profile(type="LeastAllocated")) == "n0"
    assert decision(profile(type="MostAllocated", resources=cpu)) == "n1"
    rising = {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}
    falling = {"shape": [{"utilization": 0, "score": 10}, {"utilization": 100, "score": 0}]}
    assert decision(profile(type="RequestedToCapacityRatio", resources=cpu, requestedToCapacityRatio=rising)) == "n1"
    assert decision(profile(type="RequestedToCapacityRatio", resources=cpu, requestedToCapacityRatio=falling)) == "n0"


def test_plugins_are_switched_off_and_weighted(tmp_path):
    plugins = {
        "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeAffinity", "weight": 7}]},
        "filter": {"disabled": [{"name": "NodeResourcesFit"}]},
    }
    config = loaded(tmp_path, profiles=[{"schedulerName": "mine", "plugins": plugins}, {}], podInitialBackoffSeconds=2, podMaxBackoffSeconds=20)
    mine, other = config.profiles
    assert (mine.scheduler_name, mine.weights, "NodeResourcesFit" in mine.filters) == ("mine", {"NodeAffinity": 7}, False)
    assert other.scheduler_name == "default-scheduler" and len(other.weights) == 7
    assert (config.backoff_seconds, config.backoff_seconds_max) == (2, 20)
    assert isinstance(decision(other, cpu="9"), Failure)
    assert decision(mine, cpu="9") in ("n0", "n1")


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"profiles": [{"plugins": {"score": {"enabled": [{"name": "Nonsense"}]}}}]}, "Nonsense"),
        ({"profiles": [{}, {}]}, "Duplicate"),
        ({"profiles": fit(type="Best")}, "type"),
        ({"profiles": fit(type="RequestedToCapacityRatio")}, "shape"),
        ({"percentageOfNodesToScore": 101}, "percentageOfNodesToScore"),
        ({"extenders": [{}]}, "extenders"),
        ({"podInitialBackoffSeconds": 5, "podMaxBackoffSeconds": 1}, "podMaxBackoffSeconds"),
        ({"profiles": [{"pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 5}}]}]}, "InterPodAffinity"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, said, word):
    with pytest.raises(ConfigError, match=word):
        loaded(tmp_path, **said)
