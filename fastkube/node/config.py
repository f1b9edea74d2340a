"""The node agent's configuration: KubeletConfiguration (kubelet.config.k8s.io/v1beta1) and the command line over it.

A field of the file that is not supported here is an error when it is unknown to KubeletConfiguration, and ignored with a warning when it is known
there but has no meaning for this agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastkube.api import quantity
from fastkube.runtime import logs
from fastkube.runtime.config import duration as parse_duration

API_VERSION = "kubelet.config.k8s.io/v1beta1"

log = logs.get("config")

Object = dict[str, Any]


class ConfigError(ValueError):
    """The configuration cannot be used; the text says which part and why."""


@dataclass(slots=True)
class NodeConfig:
    """What the agent runs with. Paths are absolute; durations seconds; sizes bytes."""

    name: str = ""
    hostname: str = ""
    kubeconfig: str = ""
    node_ips: list[str] = field(default_factory=list)
    root_dir: Path = Path("/var/lib/kubelet")
    cert_dir: Path | None = None
    runtime_endpoint: str = "unix:///run/containerd/containerd.sock"
    # pods from elsewhere than the API
    static_pod_path: Path | None = None
    static_pod_url: str = ""
    static_pod_url_headers: dict[str, str] = field(default_factory=dict)
    # the server
    address: str = "0.0.0.0"
    port: int = 10250
    healthz_address: str = "127.0.0.1"
    healthz_port: int = 0
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    client_ca_file: Path | None = None
    anonymous: bool = False
    webhook_authentication: bool = True
    authorization: str = "Webhook"  # or AlwaysAllow
    # the node
    register_node: bool = True
    node_labels: dict[str, str] = field(default_factory=dict)
    register_with_taints: list[Object] = field(default_factory=list)
    provider_id: str = ""
    max_pods: int = 110
    pod_pids_limit: int = -1
    system_reserved: dict[str, str] = field(default_factory=dict)
    kube_reserved: dict[str, str] = field(default_factory=dict)
    eviction_hard: dict[str, str] = field(default_factory=lambda: {"memory.available": "100Mi", "nodefs.available": "10%", "imagefs.available": "15%"})
    allowed_unsafe_sysctls: list[str] = field(default_factory=list)
    # what pods see
    cluster_dns: list[str] = field(default_factory=list)
    cluster_domain: str = ""
    resolv_conf: str = "/etc/resolv.conf"
    pod_logs_dir: Path | None = None
    seccomp_default: bool = False
    cgroup_root: str = "/"
    # housekeeping
    serialize_image_pulls: bool = True
    image_gc_high_percent: int = 85
    image_gc_low_percent: int = 80
    image_min_age_seconds: float = 120.0
    container_log_max_bytes: int = 10 << 20
    container_log_max_files: int = 5
    restart_backoff_seconds_max: float = 300.0
    # the built-in pod network
    pod_network: bool = True
    network_kubeconfig: str = ""  # credentials that may list nodes (the Node authorizer lets an agent see its own only)
    pod_cidr: str = ""
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cluster_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/12"

    def reserved(self, resource: str) -> float:
        """What is kept from pods of a resource, in base units."""
        return sum(quantity.nanos(r[resource]) / 1e9 for r in (self.system_reserved, self.kube_reserved) if resource in r)

    @property
    def eviction_memory_bytes(self) -> int:
        text = self.eviction_hard.get("memory.available", "0")
        return 0 if text.endswith("%") else int(quantity.nanos(text) / 1e9)

    @property
    def eviction_nodefs_share(self) -> float:
        text = self.eviction_hard.get("nodefs.available", "0%")
        return float(text[:-1]) / 100 if text.endswith("%") else 0.0

    @property
    def logs_dir(self) -> Path:
        return self.pod_logs_dir or Path("/var/log/pods")


def duration(text: str | int | float) -> float:
    """Seconds of a Go duration ("1m30s"). ConfigError."""
    if isinstance(text, (int, float)):
        return float(text)
    try:
        return parse_duration(text) if text else 0.0
    except ValueError as e:
        raise ConfigError(str(e)) from None


def _size(text: str) -> int:
    return int(quantity.nanos(text) / 1e9)


def _path(text: str) -> Path | None:
    return Path(text) if text else None


# field of KubeletConfiguration -> (field of NodeConfig, conversion)
_FIELDS: dict[str, tuple[str, Any]] = {
    "staticPodPath": ("static_pod_path", _path),
    "staticPodURL": ("static_pod_url", str),
    "staticPodURLHeader": ("static_pod_url_headers", lambda v: {k: ",".join(x) if isinstance(x, list) else x for k, x in v.items()}),
    "address": ("address", str),
    "port": ("port", int),
    "healthzBindAddress": ("healthz_address", str),
    "healthzPort": ("healthz_port", int),
    "tlsCertFile": ("tls_cert_file", _path),
    "tlsPrivateKeyFile": ("tls_key_file", _path),
    "maxPods": ("max_pods", int),
    "podPidsLimit": ("pod_pids_limit", int),
    "podCIDR": ("pod_cidr", str),
    "resolvConf": ("resolv_conf", str),
    "clusterDNS": ("cluster_dns", list),
    "clusterDomain": ("cluster_domain", str),
    "systemReserved": ("system_reserved", dict),
    "kubeReserved": ("kube_reserved", dict),
    "evictionHard": ("eviction_hard", dict),
    "allowedUnsafeSysctls": ("allowed_unsafe_sysctls", list),
    "podLogsDir": ("pod_logs_dir", _path),
    "seccompDefault": ("seccomp_default", bool),
    "cgroupRoot": ("cgroup_root", lambda v: v or "/"),
    "serializeImagePulls": ("serialize_image_pulls", bool),
    "imageGCHighThresholdPercent": ("image_gc_high_percent", int),
    "imageGCLowThresholdPercent": ("image_gc_low_percent", int),
    "imageMinimumGCAge": ("image_min_age_seconds", duration),
    "containerLogMaxSize": ("container_log_max_bytes", _size),
    "containerLogMaxFiles": ("container_log_max_files", int),
    "registerNode": ("register_node", bool),
    "registerWithTaints": ("register_with_taints", list),
    "providerID": ("provider_id", str),
    "containerRuntimeEndpoint": ("runtime_endpoint", str),
}

# Known to upstream, without meaning here: accepted, so that a cluster's file works unchanged.
_IGNORED = {
    "authentication", "authorization", "apiVersion", "kind", "crashLoopBackOff", "cgroupDriver", "enableServer", "syncFrequency", "fileCheckFrequency",
    "httpCheckFrequency", "readOnlyPort", "tlsCipherSuites", "tlsMinVersion", "rotateCertificates", "serverTLSBootstrap", "registryPullQPS", "registryBurst",
    "eventRecordQPS", "eventBurst", "enableDebuggingHandlers", "enableContentionProfiling", "oomScoreAdj", "streamingConnectionIdleTimeout",
    "nodeStatusUpdateFrequency", "nodeStatusReportFrequency", "nodeLeaseDurationSeconds", "imageMaximumGCAge", "volumeStatsAggPeriod", "kubeletCgroups",
    "systemCgroups", "cgroupsPerQOS", "cpuManagerPolicy", "cpuManagerPolicyOptions", "cpuManagerReconcilePeriod", "memoryManagerPolicy",
    "topologyManagerPolicy", "topologyManagerScope", "topologyManagerPolicyOptions", "qosReserved", "runtimeRequestTimeout", "hairpinMode",
    "cpuCFSQuota", "cpuCFSQuotaPeriod", "nodeStatusMaxImages", "maxOpenFiles", "contentType", "kubeAPIQPS", "kubeAPIBurst", "maxParallelImagePulls",
    "evictionSoft", "evictionSoftGracePeriod", "evictionPressureTransitionPeriod", "evictionMaxPodGracePeriod", "evictionMinimumReclaim", "podsPerCore",
    "enableControllerAttachDetach", "protectKernelDefaults", "makeIPTablesUtilChains", "iptablesMasqueradeBit", "iptablesDropBit", "featureGates",
    "failSwapOn", "memorySwap", "containerLogMaxWorkers", "containerLogMonitorInterval", "configMapAndSecretChangeDetectionStrategy",
    "systemReservedCgroup", "kubeReservedCgroup", "enforceNodeAllocatable", "volumePluginDir", "kernelMemcgNotification", "logging", "enableSystemLogHandler",
    "enableSystemLogQuery", "shutdownGracePeriod", "shutdownGracePeriodCriticalPods", "shutdownGracePeriodByPodPriority", "reservedMemory",
    "enableProfilingHandler", "enableDebugFlagsHandler", "memoryThrottlingFactor", "tracing", "localStorageCapacityIsolation", "imageServiceEndpoint",
    "singleProcessOOMKill", "preloadedImagesVerificationAllowlist", "imagePullCredentialsVerificationPolicy", "mergeDefaultEvictionSettings", "reservedSystemCPUs",
    "showHiddenMetricsForVersion", "userNamespaces",
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """A KubeletConfiguration file as fields of NodeConfig. ConfigError."""
    try:
        text = path.read_text()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    try:
        document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: no YAML: {e}") from None
    if not isinstance(document, dict) or document.get("kind") != "KubeletConfiguration" or document.get("apiVersion") != API_VERSION:
        raise ConfigError(f"{path}: a KubeletConfiguration of {API_VERSION} is wanted")
    try:
        return fields(document)
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f"{path}: {e}") from None


def fields(document: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in document.items():
        if name in _FIELDS:
            if value is not None:
                target, convert = _FIELDS[name]
                out[target] = convert(value)
        elif name not in _IGNORED:
            raise ConfigError(f'strict decoding error: unknown field "{name}"')
    authentication = document.get("authentication") or {}
    if (authentication.get("x509") or {}).get("clientCAFile"):
        out["client_ca_file"] = Path(authentication["x509"]["clientCAFile"])
    if "enabled" in (authentication.get("anonymous") or {}):
        out["anonymous"] = bool(authentication["anonymous"]["enabled"])
    if "enabled" in (authentication.get("webhook") or {}):
        out["webhook_authentication"] = bool(authentication["webhook"]["enabled"])
    mode = (document.get("authorization") or {}).get("mode")
    if mode:
        out["authorization"] = mode
    longest = (document.get("crashLoopBackOff") or {}).get("maxContainerRestartPeriod")
    if longest:
        out["restart_backoff_seconds_max"] = duration(longest)
    return out


def parse_taints(text: str) -> list[Object]:
    """`key=value:Effect,key2:Effect`. ConfigError."""
    out = []
    for part in filter(None, text.split(",")):
        key_value, colon, effect = part.rpartition(":")
        key, _, value = key_value.partition("=")
        if not colon or not key or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            raise ConfigError(f"invalid taint {part!r}: KEY[=VALUE]:EFFECT is wanted")
        out.append({"key": key, **({"value": value} if value else {}), "effect": effect})
    return out


def parse_pairs(text: str) -> dict[str, str]:
    """`key=value,key2=value2`. ConfigError."""
    out = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ConfigError(f"{part!r}: KEY=VALUE is wanted")
        out[key] = value
    return out
