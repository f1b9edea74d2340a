"""KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1), as far as this scheduler obeys it; what it does not is an error, never ignored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

API_VERSION = "kubescheduler.config.k8s.io/v1"


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
    profiles: list[str] = field(default_factory=lambda: ["default-scheduler"])


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
    _known(doc, {"apiVersion", "kind", "clientConnection", "leaderElection", "profiles"}, "")
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
        config.profiles = []
        for i, profile in enumerate(doc["profiles"]):
            _known(profile, {"schedulerName"}, f"profiles[{i}].")
            config.profiles.append(profile.get("schedulerName") or "default-scheduler")
        if len(set(config.profiles)) != len(config.profiles):
            raise ConfigError("profiles: Duplicate value: schedulerName")
    return config
