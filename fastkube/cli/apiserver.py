"""`fastkube apiserver`, with kube-apiserver's flags."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from fastkube.cli.etcd_face import etcd_face, tls_of, urls_of
from fastkube.cli.flags import fail, serve
from fastkube.runtime.pki import Pair
from fastkube.server.audit import Config as AuditConfig
from fastkube.server.config import ISSUER_DEFAULT, Config, StartError
from fastkube.server.run import open_server
from fastkube.store.etcd.errors import ListenError
from fastkube.store.interface import StoreError

__all__ = ["command", "open_server"]


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _pair(cert: Path | None, key: Path | None, what: str) -> Pair | None:
    if (cert is None) != (key is None):
        fail(f"{what}: certificate and key must be given together")
    return Pair(cert, key) if cert is not None and key is not None else None


def command(
    data_dir: Annotated[Path | None, typer.Option(help="where the store is kept; in memory when left out")] = None,
    secure_port: Annotated[int, typer.Option(min=0, max=65535, help="port to serve on")] = 6443,
    bind_address: Annotated[str, typer.Option(help="addresses to listen on")] = "0.0.0.0",
    advertise_address: Annotated[str, typer.Option(help="address at which the cluster reaches this server [default: the bind address]")] = "",
    tls_cert_file: Annotated[Path | None, typer.Option(help="PEM file of the serving certificate; without it only loopback is served, in the clear")] = None,
    tls_private_key_file: Annotated[Path | None, typer.Option(help="PEM file of its key")] = None,
    client_ca_file: Annotated[Path | None, typer.Option(help="who signs client certificates")] = None,
    token_auth_file: Annotated[Path | None, typer.Option(help='CSV file of static tokens: token,user,uid,"group,..."')] = None,
    anonymous_auth: Annotated[bool, typer.Option(help="requests without credentials are system:anonymous")] = True,
    enable_bootstrap_token_auth: Annotated[bool, typer.Option(help="bootstrap tokens in kube-system authenticate")] = False,
    authorization_mode: Annotated[str, typer.Option(help="Node, RBAC, AlwaysAllow, AlwaysDeny; in order")] = "Node,RBAC",
    service_cluster_ip_range: Annotated[str, typer.Option(help="range of ClusterIPs, or two of different families")] = "10.96.0.0/12",
    service_node_port_range: Annotated[str, typer.Option(help="range of node ports")] = "30000-32767",
    service_account_key_file: Annotated[list[Path] | None, typer.Option(help="keys that verify service account tokens")] = None,
    service_account_signing_key_file: Annotated[Path | None, typer.Option(help="key that signs them")] = None,
    service_account_issuer: Annotated[list[str] | None, typer.Option(help="their issuer; the first signs")] = None,
    service_account_jwks_uri: Annotated[str, typer.Option(help="where the issuer's keys are found")] = "",
    api_audiences: Annotated[str, typer.Option(help="audiences of this API [default: the issuers]")] = "",
    kubelet_client_certificate: Annotated[Path | None, typer.Option(help="client certificate for kubelets")] = None,
    kubelet_client_key: Annotated[Path | None, typer.Option(help="its key")] = None,
    kubelet_certificate_authority: Annotated[Path | None, typer.Option(help="who signs kubelets' serving certificates")] = None,
    kubelet_preferred_address_types: Annotated[str, typer.Option(help="which addresses of a node are tried, in order")] = "InternalIP,Hostname,ExternalIP",
    kubelet_timeout: Annotated[str, typer.Option(help="for connecting to a kubelet")] = "5s",
    requestheader_client_ca_file: Annotated[Path | None, typer.Option(help="who signs front proxies' certificates")] = None,
    requestheader_allowed_names: Annotated[str, typer.Option(help="common names of front proxies; empty: any")] = "",
    proxy_client_cert_file: Annotated[Path | None, typer.Option(help="client certificate for extension servers")] = None,
    proxy_client_key_file: Annotated[Path | None, typer.Option(help="its key")] = None,
    enable_admission_plugins: Annotated[str, typer.Option(help="admission plugins beyond the default ones")] = "",
    disable_admission_plugins: Annotated[str, typer.Option(help="default admission plugins to leave out")] = "",
    etcd_listen_client_urls: Annotated[str, typer.Option(help="serve etcd's API of the live store on these URLs, to clients of system:masters")] = "",
    event_ttl: Annotated[str, typer.Option(help="how long events are kept")] = "1h0m0s",
    enable_priority_and_fairness: Annotated[bool, typer.Option(help="share the server by FlowSchemas and PriorityLevelConfigurations")] = True,
    max_requests_inflight: Annotated[int, typer.Option(min=0, help="requests being waited for at once")] = 400,
    max_mutating_requests_inflight: Annotated[int, typer.Option(min=0, help="of these, writes; both together are shared by priority and fairness")] = 200,
    audit_policy_file: Annotated[Path | None, typer.Option(help="audit.k8s.io/v1 Policy: what is recorded")] = None,
    audit_log_path: Annotated[str, typer.Option(help="file for audit events, as JSON lines; - is standard output")] = "",
    audit_log_maxsize: Annotated[int, typer.Option(min=0, help="megabytes of that file before it is rotated [0: 100]")] = 0,
    audit_log_maxbackup: Annotated[int, typer.Option(min=0, help="rotated files kept; 0: all")] = 0,
    audit_log_maxage: Annotated[int, typer.Option(min=0, help="days for which rotated files are kept; 0: for good")] = 0,
    audit_webhook_config_file: Annotated[Path | None, typer.Option(help="kubeconfig file of the server that audit events are sent to")] = None,
    audit_webhook_batch_max_wait: Annotated[str, typer.Option(help="how long a batch of events is gathered")] = "30s",
    unsafe_no_fsync: Annotated[bool, typer.Option(help="do not wait for the disk: a crash of the machine may lose writes")] = False,
) -> None:
    """Run the API server with its store until SIGINT or SIGTERM."""
    binds = _list(bind_address) or ["0.0.0.0"]
    unspecified = all(ipaddress.ip_address(b).is_unspecified for b in binds if _is_address(b))
    config = Config(
        data_dir=data_dir, bind_addresses=binds, secure_port=secure_port, advertise_address=advertise_address or ("127.0.0.1" if unspecified else binds[0]),
        tls_cert_file=tls_cert_file, tls_private_key_file=tls_private_key_file, client_ca_file=client_ca_file, token_auth_file=token_auth_file,
        anonymous_auth=anonymous_auth, enable_bootstrap_token_auth=enable_bootstrap_token_auth, authorization_mode=_list(authorization_mode),
        service_cluster_ip_range=service_cluster_ip_range, service_node_port_range=service_node_port_range, service_account_key_files=service_account_key_file or (),
        service_account_signing_key_file=service_account_signing_key_file,
        service_account_issuers=service_account_issuer or (ISSUER_DEFAULT,),
        service_account_jwks_uri=service_account_jwks_uri, api_audiences=_list(api_audiences),
        kubelet_client=_pair(kubelet_client_certificate, kubelet_client_key, "kubelet client"), kubelet_certificate_authority=kubelet_certificate_authority,
        kubelet_preferred_address_types=_list(kubelet_preferred_address_types), kubelet_timeout_seconds=_seconds(kubelet_timeout),
        requestheader_client_ca_file=requestheader_client_ca_file, requestheader_allowed_names=_list(requestheader_allowed_names),
        proxy_client=_pair(proxy_client_cert_file, proxy_client_key_file, "proxy client"), enable_admission_plugins=_list(enable_admission_plugins),
        disable_admission_plugins=_list(disable_admission_plugins), event_ttl_seconds=int(_seconds(event_ttl)), fsync=not unsafe_no_fsync,
        enable_priority_and_fairness=enable_priority_and_fairness, max_requests_inflight=max_requests_inflight,
        max_mutating_requests_inflight=max_mutating_requests_inflight,
        audit=AuditConfig(
            audit_policy_file, audit_log_path, audit_log_maxsize, audit_log_maxbackup, audit_log_maxage, audit_webhook_config_file,
            _seconds(audit_webhook_batch_max_wait),
        ),
    )  # fmt: skip

    async def main(stop: asyncio.Event) -> None:
        server = await open_server(config)
        try:
            tls = tls_of(tls_cert_file, tls_private_key_file, client_ca_file)
            async with etcd_face(server.store, urls_of(etcd_listen_client_urls), tls, data_dir):
                await stop.wait()
        finally:
            await server.close()

    serve("apiserver", main, (StartError, StoreError, ListenError))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def _seconds(text: str) -> float:
    """A Go duration (`1h0m0s`) in seconds."""
    import re

    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", text):
        fail(f'"{text}" is no duration (write it as 1h30m or 5s)')
    return sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", text))
