"""`fastkube kubelet`: the node agent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from fastkube.cli.flags import fail, serve
from fastkube.client.kubeconfig import KubeconfigError
from fastkube.node import machine
from fastkube.node.config import ConfigError, NodeConfig, parse_pairs, parse_taints, read
from fastkube.node.network import NetworkError
from fastkube.node.run import StartError, run


def command(
    kubeconfig: Annotated[str, typer.Option(help="kubeconfig file; without one the agent runs static pods only")] = "",
    config: Annotated[Path | None, typer.Option(help="KubeletConfiguration file (kubelet.config.k8s.io/v1beta1); flags win over it")] = None,
    hostname_override: Annotated[str, typer.Option(help="name of the node [default: the machine's host name]")] = "",
    node_ip: Annotated[str, typer.Option(help="address of the node, or two (dual stack), comma-separated [default: that of the default route]")] = "",
    container_runtime_endpoint: Annotated[
        str | None, typer.Option(help="socket of the container runtime's CRI [default: unix:///run/containerd/containerd.sock]")
    ] = None,
    root_dir: Annotated[Path, typer.Option(help="where pods' volumes and the agent's files are kept")] = Path("/var/lib/kubelet"),
    cert_dir: Annotated[Path | None, typer.Option(help="where the agent keeps certificates it makes itself [default: ROOT_DIR/pki]")] = None,
    tls_cert_file: Annotated[Path | None, typer.Option(help="serving certificate [default: a self-signed one]")] = None,
    tls_private_key_file: Annotated[Path | None, typer.Option(help="key of the serving certificate")] = None,
    client_ca_file: Annotated[Path | None, typer.Option(help="authorities of client certificates")] = None,
    anonymous_auth: Annotated[bool | None, typer.Option(help="let requests without credentials through to authorization")] = None,
    authorization_mode: Annotated[str | None, typer.Option(help="Webhook or AlwaysAllow")] = None,
    address: Annotated[str | None, typer.Option(help="address the server listens on")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="port the server listens on [default: 10250]")] = None,
    healthz_port: Annotated[int | None, typer.Option(min=0, max=65535, help="port of the plain health server on 127.0.0.1; 0: none")] = None,
    pod_manifest_path: Annotated[Path | None, typer.Option(help="directory (or file) of static pods")] = None,
    manifest_url: Annotated[str | None, typer.Option(help="URL of static pods")] = None,
    cluster_dns: Annotated[str | None, typer.Option(help="addresses of the cluster's DNS servers, comma-separated")] = None,
    cluster_domain: Annotated[str | None, typer.Option(help="domain of the cluster")] = None,
    resolv_conf: Annotated[str | None, typer.Option(help="resolver configuration of the host")] = None,
    pod_cidr: Annotated[str | None, typer.Option(help="address range of this node's pods [default: the node object's]")] = None,
    register_node: Annotated[bool | None, typer.Option(help="register the node with the API server")] = None,
    node_labels: Annotated[str, typer.Option(help="labels to register with: KEY=VALUE,...")] = "",
    register_with_taints: Annotated[str, typer.Option(help="taints to register with: KEY=VALUE:EFFECT,...")] = "",
    provider_id: Annotated[str | None, typer.Option(help="identity of the machine at its provider")] = None,
    max_pods: Annotated[int | None, typer.Option(min=1, help="how many pods the node takes")] = None,
    pod_max_pids: Annotated[int | None, typer.Option(help="processes per pod; -1: no limit")] = None,
    system_reserved: Annotated[str, typer.Option(help="kept for the system: cpu=200m,memory=500Mi")] = "",
    kube_reserved: Annotated[str, typer.Option(help="kept for the agent and the runtime")] = "",
    eviction_hard: Annotated[str, typer.Option(help="hard eviction thresholds: memory.available<100Mi,nodefs.available<10%")] = "",
    allowed_unsafe_sysctls: Annotated[str, typer.Option(help="unsafe sysctls (or patterns with *) that pods may set, comma-separated")] = "",
    seccomp_default: Annotated[bool | None, typer.Option(help="RuntimeDefault is the default seccomp profile")] = None,
    cgroup_root: Annotated[str | None, typer.Option(help="cgroup below which pods' cgroups are made")] = None,
    serialize_image_pulls: Annotated[bool | None, typer.Option(help="pull one image at a time")] = None,
    container_log_max_size: Annotated[str | None, typer.Option(help="size at which a container's log is rotated")] = None,
    container_log_max_files: Annotated[int | None, typer.Option(min=2, help="log files kept per container")] = None,
    pod_logs_dir: Annotated[Path | None, typer.Option(help="where containers' logs are [default: ROOT_DIR/logs, /var/log/pods for the default root]")] = None,
    pod_network: Annotated[bool, typer.Option(help="set the built-in pod network up; without it, a CNI configuration of your own is used")] = True,
    network_kubeconfig: Annotated[str, typer.Option(help="kubeconfig that may list nodes, for the built-in pod network's routes to other nodes")] = "",
    cni_conf_dir: Annotated[Path, typer.Option(help="where the built-in pod network's CNI configuration goes")] = Path("/etc/cni/net.d"),
    cluster_cidr: Annotated[str, typer.Option(help="address range of all pods")] = "10.244.0.0/16",
    service_cluster_ip_range: Annotated[str, typer.Option(help="address range of services")] = "10.96.0.0/12",
) -> None:
    """Run the node agent until SIGINT or SIGTERM; containers keep running."""
    given = {
        "runtime_endpoint": container_runtime_endpoint, "tls_cert_file": tls_cert_file, "tls_key_file": tls_private_key_file, "client_ca_file": client_ca_file,
        "anonymous": anonymous_auth, "authorization": authorization_mode, "address": address, "port": port, "healthz_port": healthz_port,
        "static_pod_path": pod_manifest_path, "static_pod_url": manifest_url, "cluster_domain": cluster_domain, "resolv_conf": resolv_conf,
        "pod_cidr": pod_cidr, "register_node": register_node, "provider_id": provider_id, "max_pods": max_pods, "pod_pids_limit": pod_max_pids,
        "seccomp_default": seccomp_default, "cgroup_root": cgroup_root, "serialize_image_pulls": serialize_image_pulls,
        "container_log_max_files": container_log_max_files, "pod_logs_dir": pod_logs_dir,
    }  # fmt: skip
    try:
        settings: dict[str, Any] = read(config) if config else {}
        settings |= {k: v for k, v in given.items() if v is not None}
        settings |= _lists(
            cluster_dns, node_labels, register_with_taints, system_reserved, kube_reserved, eviction_hard, allowed_unsafe_sysctls, container_log_max_size
        )
        node = NodeConfig(kubeconfig=kubeconfig, root_dir=root_dir.absolute(), pod_network=pod_network, cni_conf_dir=cni_conf_dir, **settings)
        node.network_kubeconfig = network_kubeconfig
        node.cluster_cidr, node.service_cidr = cluster_cidr, service_cluster_ip_range
        node.cert_dir = cert_dir or node.root_dir / "pki"
        node.name = hostname_override or machine.hostname()
        node.hostname = node.name
        node.node_ips = [ip for ip in node_ip.split(",") if ip] or [machine.default_address()]
        if node.pod_logs_dir is None and node.root_dir != Path("/var/lib/kubelet"):
            node.pod_logs_dir = node.root_dir / "logs"
        if node.authorization not in ("Webhook", "AlwaysAllow"):
            raise ConfigError(f"--authorization-mode: {node.authorization!r} is neither Webhook nor AlwaysAllow")
    except ConfigError as e:
        fail(str(e))

    async def main(stop: asyncio.Event) -> None:
        await run(node, stop)

    serve("kubelet", main, (StartError, KubeconfigError, NetworkError, OSError))


def _lists(cluster_dns: str | None, labels: str, taints: str, system: str, kube: str, eviction: str, sysctls: str, log_size: str | None) -> dict[str, Any]:
    """The flags whose values are lists."""
    from fastkube.node.config import fields

    out: dict[str, Any] = {}
    if cluster_dns is not None:
        out["cluster_dns"] = [a for a in cluster_dns.split(",") if a]
    if labels:
        out["node_labels"] = parse_pairs(labels)
    if taints:
        out["register_with_taints"] = parse_taints(taints)
    if system:
        out["system_reserved"] = parse_pairs(system)
    if kube:
        out["kube_reserved"] = parse_pairs(kube)
    if eviction:
        out["eviction_hard"] = parse_pairs(eviction.replace("<", "="))
    if sysctls:
        out["allowed_unsafe_sysctls"] = sysctls.split(",")
    if log_size:
        out |= fields({"containerLogMaxSize": log_size})
    return out
