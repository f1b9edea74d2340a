"""`fastkube proxy`, with kube-proxy's flags."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Annotated

import typer

from fastkube.cli.flags import Kubeconfig, fail, serve
from fastkube.client.kubeconfig import KubeconfigError
from fastkube.proxy import config as configuration
from fastkube.proxy.nftables import NftError
from fastkube.proxy.run import cleanup as remove_all
from fastkube.proxy.run import run


def command(
    kubeconfig: Kubeconfig = "",
    config: Annotated[Path | None, typer.Option(help="KubeProxyConfiguration file; its settings win over flags")] = None,
    proxy_mode: Annotated[str, typer.Option(help="ipvs or nftables [default: ipvs where the kernel has it, else nftables]")] = "",
    hostname_override: Annotated[str, typer.Option(help="this node's name [default: the machine's]")] = "",
    cluster_cidr: Annotated[
        str, typer.Option(help="pod network: what comes to cluster addresses from elsewhere is masqueraded; one per family, comma-separated")
    ] = "",
    service_cluster_ip_range: Annotated[
        str, typer.Option(help="service network: what no service wants is refused; one per family, comma-separated")
    ] = "10.96.0.0/12",
    nodeport_addresses: Annotated[
        str, typer.Option(help="CIDRs of the node's addresses that take node ports, comma-separated [default: all but loopback]")
    ] = "",
    ipvs_scheduler: Annotated[str, typer.Option(help="how IPVS picks a backend: " + ", ".join(configuration.SCHEDULERS))] = "rr",
    ipvs_exclude_cidrs: Annotated[str, typer.Option(help="virtual servers on addresses in these CIDRs are left alone, comma-separated")] = "",
    healthz_bind_address: Annotated[str, typer.Option(help="ADDRESS:PORT of /healthz and /livez; empty: none")] = "0.0.0.0:10256",
    metrics_bind_address: Annotated[str, typer.Option(help="ADDRESS:PORT of /metrics and /proxyMode; empty: none")] = "127.0.0.1:10249",
    cleanup: Annotated[bool, typer.Option("--cleanup", help="remove every rule and device of the proxy, and exit")] = False,
) -> None:
    """Lead connections to services to their pods."""
    settings = configuration.Config(
        kubeconfig=kubeconfig, mode=proxy_mode, node_name=hostname_override, cluster_cidrs=configuration.cidr_list(cluster_cidr),
        service_cidrs=configuration.cidr_list(service_cluster_ip_range), node_port_cidrs=configuration.cidr_list(nodeport_addresses),
        ipvs_scheduler=ipvs_scheduler, ipvs_exclude_cidrs=configuration.cidr_list(ipvs_exclude_cidrs), healthz_address=healthz_bind_address, metrics_address=metrics_bind_address,
    )  # fmt: skip
    try:
        if config:
            settings = configuration.load(config, settings)
        if cleanup:
            asyncio.run(remove_all(settings))
            return
        settings.check()
    except (configuration.ConfigError, NftError, OSError) as error:
        fail(str(error))
    settings.node_name = (settings.node_name or socket.gethostname()).lower()
    serve("proxy", lambda stop: run(settings, stop), (KubeconfigError, configuration.ConfigError))
