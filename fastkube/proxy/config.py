"""The proxy's settings: flags, and KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1) as far as this proxy obeys it; what it does not is an error."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
MODES = ("", "ipvs", "nftables")
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "mh")


class ConfigError(ValueError):
    """A setting that is wrong or not supported; names it."""


@dataclass(slots=True)
class Config:
    kubeconfig: str = ""
    mode: str = ""  # "": ipvs where the kernel has it, else nftables
    node_name: str = ""
    cluster_cidrs: list[str] = field(default_factory=list)
    service_cidrs: list[str] = field(default_factory=lambda: ["10.96.0.0/12"])
    node_port_cidrs: list[str] = field(default_factory=list)
    ipvs_scheduler: str = "rr"
    ipvs_exclude_cidrs: list[str] = field(default_factory=list)  # virtual servers on these addresses are somebody else's
    healthz_address: str = "0.0.0.0:10256"
    metrics_address: str = "127.0.0.1:10249"

    def check(self) -> None:
        """Raises ConfigError for what cannot be."""
        if self.mode == "iptables":
            raise ConfigError("--proxy-mode=iptables is not supported: nftables reaches the same and needs no iptables; use --proxy-mode=nftables or ipvs")
        if self.mode not in MODES:
            raise ConfigError(f"--proxy-mode: {self.mode!r} is none of ipvs, nftables")
        if self.ipvs_scheduler not in SCHEDULERS:
            raise ConfigError(f"--ipvs-scheduler: {self.ipvs_scheduler!r} is none of {', '.join(SCHEDULERS)}")
        if not self.kubeconfig:
            raise ConfigError("--kubeconfig is needed (or clientConnection.kubeconfig in --config)")
        for name, cidrs in (
            ("--ipvs-exclude-cidrs", self.ipvs_exclude_cidrs),
            ("--cluster-cidr", self.cluster_cidrs),
            ("--service-cluster-ip-range", self.service_cidrs),
            ("--nodeport-addresses", self.node_port_cidrs),
        ):
            for cidr in cidrs:
                try:
                    ipaddress.ip_network(cidr)
                except ValueError as e:
                    raise ConfigError(f"{name}: {e}") from e
        for name, address in (("--healthz-bind-address", self.healthz_address), ("--metrics-bind-address", self.metrics_address)):
            try:
                split_address(address)
            except ValueError as e:
                raise ConfigError(f"{name}: {address!r} is no ADDRESS:PORT") from e


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT` -> host and port; ("", 0) for an empty text. ValueError when it is neither."""
    if not text:
        return "", 0
    host, _, port = text.rpartition(":")
    number = int(port)
    if not 0 <= number < 65536:
        raise ValueError(f"port {number}")
    return host.strip("[]") or "0.0.0.0", number


_FIELDS = {
    "mode": "mode", "hostnameOverride": "node_name", "healthzBindAddress": "healthz_address", "metricsBindAddress": "metrics_address",
    "nodePortAddresses": "node_port_cidrs",
}  # fmt: skip


def load(path: Path, config: Config) -> Config:
    """Lay what the file says over `config`. Raises ConfigError, OSError."""
    try:
        doc = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: {e}") from e
    if not isinstance(doc, dict) or doc.get("apiVersion") != API_VERSION or doc.get("kind") != "KubeProxyConfiguration":
        raise ConfigError(f"{path}: apiVersion {API_VERSION} and kind KubeProxyConfiguration are wanted")
    _known(doc, {"apiVersion", "kind", "clientConnection", "clusterCIDR", "ipvs", *_FIELDS}, "")
    connection, ipvs = doc.get("clientConnection") or {}, doc.get("ipvs") or {}
    _known(connection, {"kubeconfig"}, "clientConnection.")
    _known(ipvs, {"scheduler", "excludeCIDRs"}, "ipvs.")
    config.ipvs_exclude_cidrs = ipvs.get("excludeCIDRs") or config.ipvs_exclude_cidrs
    config.kubeconfig = connection.get("kubeconfig") or config.kubeconfig
    config.ipvs_scheduler = ipvs.get("scheduler") or config.ipvs_scheduler
    if doc.get("clusterCIDR"):
        config.cluster_cidrs = cidr_list(doc["clusterCIDR"])
    for name, attribute in _FIELDS.items():
        if doc.get(name):
            setattr(config, attribute, doc[name])
    return config


def cidr_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _known(section: Any, names: set[str], path: str) -> None:
    if not isinstance(section, dict):
        raise ConfigError(f"{path.rstrip('.')}: an object is wanted")
    for name in section:
        if name not in names:
            raise ConfigError(f"{path}{name}: not supported")
