"""`fastkube dns`: the cluster's DNS server."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from fastkube.cli.flags import Kubeconfig, fail, serve
from fastkube.client.kubeconfig import KubeconfigError
from fastkube.dns.forward import Upstream
from fastkube.dns.run import Config, ListenError, run


def command(
    kubeconfig: Kubeconfig = "",
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT to answer on, UDP and TCP")] = "127.0.0.1:10053",
    publish: Annotated[bool, typer.Option(help="see to the Service kube-dns in kube-system and to its endpoint here")] = False,
    cluster_dns: Annotated[str, typer.Option(help="address of the Service kube-dns, as the node agents tell pods")] = "10.96.0.10",
    cluster_domain: Annotated[str, typer.Option(help="the cluster's zone")] = "cluster.local",
    cluster_cidr: Annotated[str, typer.Option(help="pod network: its reverse names are never asked upstream")] = "10.244.0.0/16",
    service_cluster_ip_range: Annotated[str, typer.Option(help="service network: its reverse names are never asked upstream")] = "10.96.0.0/12",
    resolv_conf: Annotated[Path, typer.Option(help="file whose nameservers are asked for names outside the cluster")] = Path("/etc/resolv.conf"),
    http_bind_address: Annotated[str, typer.Option(help="ADDRESS:PORT of /health, /ready and /metrics; empty: none")] = "",
    upstream: Annotated[str, typer.Option(help="ADDRESS[:PORT],... to ask instead of those in --resolv-conf")] = "",
) -> None:
    """Answer DNS for services and pods; forward other names."""
    if not kubeconfig:
        fail("--kubeconfig is needed")
    try:
        host, port = _address(listen)
        http = _address(http_bind_address) if http_bind_address else None
        upstreams = [Upstream(*_address(text, 53)) for text in upstream.split(",")] if upstream else None
    except ValueError as error:
        fail(str(error))
    if publish and (host in ("0.0.0.0", "::", "localhost") or ipaddress.ip_address(host).is_loopback):
        fail(f"--publish needs an address in --listen that pods reach, not {host}")
    cidrs = [cidr for text in (cluster_cidr, service_cluster_ip_range) for cidr in text.split(",") if cidr]
    config = Config(kubeconfig, (host, port), cluster_domain.strip("."), cluster_dns, publish, resolv_conf, upstreams, http, cidrs)
    serve("dns", lambda stop: run(config, stop), (KubeconfigError, ListenError))


def _address(text: str, default_port: int | None = None) -> tuple[str, int]:
    host, colon, port = text.strip().rpartition(":")
    if not colon or ("]" in port):
        host, port = text.strip(), ""
    host = host.strip("[]")
    if not host or not (port or default_port):
        raise ValueError(f"{text!r} is no ADDRESS:PORT")
    if port and (not port.isdigit() or int(port) > 65535):
        raise ValueError(f"{text!r}: {port!r} is no port")
    return host, int(port) if port else default_port or 0
