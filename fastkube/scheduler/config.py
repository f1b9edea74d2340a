"""KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1), as far as this scheduler obeys it; what it does not is an error, never ignored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastkube.scheduler.profile import FILTERS, PLUGINS, SCORE_WEIGHTS, Profile

API_VERSION = "kubescheduler.config.k8s.io/v1"
TOP_FIELDS = {
    "apiVersion", "kind", "clientConnection", "leaderElection", "profiles", "percentageOfNodesToScore", "podInitialBackoffSeconds", "podMaxBackoffSeconds",
    "parallelism", "enableProfiling", "enableContentionProfiling", "delayCacheUntilActive",
}  # fmt: skip
EXTENSION_POINTS = ("preEnqueue", "queueSort", "preFilter", "filter", "postFilter", "preScore", "score", "reserve", "permit", "preBind", "bind", "postBind")


class ConfigError(ValueError):
    """The file is no KubeSchedulerConfiguration, or asks for what is not supported; names the field."""


@dataclass(slots=True)
class Config:
    kubeconfig: str
    leader_elect: bool = True
    lease_name: str = "kube-scheduler"
    lease_namespace: str = "kube-system"
    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0
    profiles: list[Profile] = field(default_factory=lambda: [Profile()])
    backoff_seconds: float = 1.0
    backoff_seconds_max: float = 10.0


def _known(section: dict[str, Any], names: set[str], path: str) -> None:
    for name in section:
        if name not in names:
            raise ConfigError(f"{path}{name}: not supported")


def _seconds(text: str, path: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit, factor in units.items():
        if text.endswith(unit):
            try:
                return float(text.removesuffix(unit)) * factor
            except ValueError:
                continue
    raise ConfigError(f"{path}: {text!r} is no duration")


def load(path: Path, config: Config) -> Config:
    """Lay what the file says over `config`. Raises ConfigError, OSError."""
    try:
        doc = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: {e}") from e
    if doc.get("apiVersion") != API_VERSION or doc.get("kind") != "KubeSchedulerConfiguration":
        raise ConfigError(f"{path}: apiVersion {API_VERSION} and kind KubeSchedulerConfiguration are wanted")
    _known(doc, TOP_FIELDS, "")
    if not 0 <= int(doc.get("percentageOfNodesToScore") or 0) <= 100:  # accepted; all nodes are looked at anyway, which costs no more
        raise ConfigError(f"percentageOfNodesToScore: Invalid value: {doc['percentageOfNodesToScore']}: not in valid range [0-100]")
    config.backoff_seconds = float(doc.get("podInitialBackoffSeconds") or config.backoff_seconds)
    config.backoff_seconds_max = float(doc.get("podMaxBackoffSeconds") or max(config.backoff_seconds_max, config.backoff_seconds))
    if config.backoff_seconds <= 0 or config.backoff_seconds_max < config.backoff_seconds:
        raise ConfigError("podMaxBackoffSeconds: must be greater than or equal to PodInitialBackoffSeconds, which must be greater than 0")
    connection = doc.get("clientConnection") or {}
    _known(connection, {"kubeconfig"}, "clientConnection.")
    config.kubeconfig = connection.get("kubeconfig") or config.kubeconfig
    election = doc.get("leaderElection") or {}
    _known(election, {"leaderElect", "resourceName", "resourceNamespace", "leaseDuration", "renewDeadline", "retryPeriod", "resourceLock"}, "leaderElection.")
    config.leader_elect = election.get("leaderElect", config.leader_elect)
    config.lease_name = election.get("resourceName", config.lease_name)
    config.lease_namespace = election.get("resourceNamespace", config.lease_namespace)
    for key, attribute in (("leaseDuration", "lease_seconds"), ("renewDeadline", "renew_deadline_seconds"), ("retryPeriod", "retry_seconds")):
        if key in election:
            setattr(config, attribute, _seconds(election[key], f"leaderElection.{key}"))
    if doc.get("profiles"):
        config.profiles = [_profile(profile, f"profiles[{i}].") for i, profile in enumerate(doc["profiles"])]
        names = [p.scheduler_name for p in config.profiles]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ConfigError(f'profiles[{i}].schedulerName: Duplicate value: "{name}"')
    return config


def _profile(said: dict[str, Any], path: str) -> Profile:
    _known(said, {"schedulerName", "plugins", "pluginConfig", "percentageOfNodesToScore"}, path)
    profile = Profile(said.get("schedulerName") or "default-scheduler")
    plugins = said.get("plugins") or {}
    _known(plugins, {"multiPoint", *EXTENSION_POINTS}, f"{path}plugins.")
    for point in ("multiPoint", *EXTENSION_POINTS):  # a point of its own wins over multiPoint
        _apply_plugins(profile, point, plugins.get(point) or {}, f"{path}plugins.{point}.")
    for i, entry in enumerate(said.get("pluginConfig") or ()):
        _apply_args(profile, entry, f"{path}pluginConfig[{i}].")
    return profile


def _apply_plugins(profile: Profile, point: str, said: dict[str, Any], path: str) -> None:
    _known(said, {"enabled", "disabled"}, path)
    scores, filtering = point in ("multiPoint", "score"), point in ("multiPoint", "filter")
    for entry in said.get("disabled") or ():
        name = entry.get("name", "")
        _check_plugin(name, path, star=True)
        gone = PLUGINS if name == "*" else {name}
        if scores:
            profile.weights = {n: w for n, w in profile.weights.items() if n not in gone}
        if filtering:
            profile.filters -= gone
        if point in ("multiPoint", "postFilter") and "DefaultPreemption" in gone:
            profile.preemption = False
    for entry in said.get("enabled") or ():
        name = entry.get("name", "")
        _check_plugin(name, path)
        if scores and name in SCORE_WEIGHTS:
            profile.weights[name] = int(entry.get("weight") or (SCORE_WEIGHTS[name] if point == "multiPoint" else 1))
        if filtering and name in FILTERS:
            profile.filters |= {name}
        if point in ("multiPoint", "postFilter") and name == "DefaultPreemption":
            profile.preemption = True


def _check_plugin(name: str, path: str, star: bool = False) -> None:
    if name not in PLUGINS and not (star and name == "*"):
        raise ConfigError(f"{path}: plugin {name!r} does not exist")


def _apply_args(profile: Profile, entry: dict[str, Any], path: str) -> None:
    _known(entry, {"name", "args"}, path)
    name, args = entry.get("name", ""), {k: v for k, v in (entry.get("args") or {}).items() if k not in ("apiVersion", "kind")}
    _check_plugin(name, f"{path}name")
    if name == "NodeResourcesFit":
        _known(args, {"scoringStrategy"}, f"{path}args.")
        _apply_strategy(profile, args.get("scoringStrategy") or {}, f"{path}args.scoringStrategy.")
    elif name == "PodTopologySpread":
        _known(args, {"defaultingType"}, f"{path}args.")
        if args.get("defaultingType", "System") not in ("System", "List"):
            raise ConfigError(f"{path}args.defaultingType: System or List is wanted")
        profile.spread_defaults = args.get("defaultingType", "System") == "System"
    elif args:
        raise ConfigError(f"{path}args: not supported for {name}")


def _apply_strategy(profile: Profile, said: dict[str, Any], path: str) -> None:
    _known(said, {"type", "resources", "requestedToCapacityRatio"}, path)
    profile.strategy = said.get("type") or "LeastAllocated"
    if profile.strategy not in ("LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"):
        raise ConfigError(f"{path}type: LeastAllocated, MostAllocated or RequestedToCapacityRatio is wanted")
    resources = tuple((r.get("name", ""), int(r.get("weight") or 1)) for r in said.get("resources") or ())
    if any(not 1 <= weight <= 100 for _, weight in resources):
        raise ConfigError(f"{path}resources: weights lie between 1 and 100")
    profile.resources = resources or profile.resources
    if profile.strategy == "RequestedToCapacityRatio":
        points = [(int(p.get("utilization", 0)), int(p.get("score", 0))) for p in (said.get("requestedToCapacityRatio") or {}).get("shape") or ()]
        if not points or any(not 0 <= u <= 100 or not 0 <= s <= 10 for u, s in points) or [u for u, _ in points] != sorted({u for u, _ in points}):
            raise ConfigError(f"{path}requestedToCapacityRatio.shape: points of rising utilization (0 to 100) with a score (0 to 10) are wanted")
        profile.shape = tuple((u, s * 10) for u, s in points)
