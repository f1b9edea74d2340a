"""`fastkube controller-manager`, with kube-controller-manager's flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastkube.cli.flags import Kubeconfig, fail, serve
from fastkube.client.kubeconfig import KubeconfigError
from fastkube.controllers import manager
from fastkube.controllers.manager import Config, ManagerError
from fastkube.controllers.runtime import Options
from fastkube.runtime.config import duration as parse_duration

# flag -> the controller whose workers it counts
_CONCURRENT = {
    "deployment": "deployment-controller", "replicaset": "replicaset-controller", "rc": "replicationcontroller-controller", "endpoint": "endpoints-controller",
    "service_endpoint": "endpointslice-controller", "namespace": "namespace-controller", "gc": "garbage-collector-controller",
    "ttl_after_finished": "ttl-after-finished-controller", "statefulset": "statefulset-controller", "daemonset": "daemonset-controller", "job": "job-controller",
    "cron_job": "cronjob-controller", "resource_quota": "resourcequota-controller", "horizontal_pod_autoscaler": "horizontal-pod-autoscaler-controller",
    "ephemeralvolume": "ephemeral-volume-controller",
}  # fmt: skip

Workers = Annotated[int, typer.Option(min=1, help="workers of that controller")]


def duration(text: str) -> float:
    """A Go duration (`40s`, `1m30s`, `0`) in seconds. Raises typer.BadParameter."""
    try:
        return parse_duration(text)
    except ValueError as e:
        raise typer.BadParameter(f"{e} such as 40s or 1m30s") from None


def command(
    kubeconfig: Kubeconfig = "",
    controllers: Annotated[list[str] | None, typer.Option(help="which run: '*' all that are on by default, 'foo' foo, '-foo' not foo; comma list")] = None,
    leader_elect: Annotated[bool, typer.Option(help="hold a Lease, so that one of several managers works")] = True,
    leader_elect_lease_duration: Annotated[str, typer.Option(help="how long a lease is good without renewal")] = "15s",
    leader_elect_renew_deadline: Annotated[str, typer.Option(help="how long the leader tries to renew before it stops")] = "10s",
    leader_elect_retry_period: Annotated[str, typer.Option(help="time between attempts")] = "2s",
    leader_elect_resource_name: Annotated[str, typer.Option(help="name of the Lease")] = manager.LEASE_NAME,
    leader_elect_resource_namespace: Annotated[str, typer.Option(help="namespace of the Lease")] = "kube-system",
    use_service_account_credentials: Annotated[bool, typer.Option(help="each controller acts as a service account of its own")] = False,
    service_account_private_key_file: Annotated[Path | None, typer.Option(help="key that signs legacy service account tokens")] = None,
    root_ca_file: Annotated[Path | None, typer.Option(help="CA bundle published to every namespace")] = None,
    cluster_signing_cert_file: Annotated[Path | None, typer.Option(help="CA certificate that signs certificate requests")] = None,
    cluster_signing_key_file: Annotated[Path | None, typer.Option(help="its key")] = None,
    cluster_signing_duration: Annotated[str, typer.Option(help="longest life of a signed certificate")] = "8760h0m0s",
    allocate_node_cidrs: Annotated[bool, typer.Option(help="give each node a range of --cluster-cidr")] = False,
    cluster_cidr: Annotated[str, typer.Option(help="addresses of pods; one or two ranges, comma list")] = "",
    node_cidr_mask_size: Annotated[int, typer.Option(min=1, max=128, help="size of a node's range")] = 24,
    service_cluster_ip_range: Annotated[str, typer.Option(help="addresses of services, never given to nodes")] = "",
    node_monitor_period: Annotated[str, typer.Option(help="accepted for upstream's sake: nodes are watched, not polled")] = "5s",
    node_monitor_grace_period: Annotated[str, typer.Option(help="silence after which a node is not ready")] = "40s",
    node_startup_grace_period: Annotated[str, typer.Option(help="the same, for a node that never reported")] = "1m0s",
    node_eviction_rate: Annotated[float, typer.Option(help="nodes per second emptied in a healthy zone")] = 0.1,
    secondary_node_eviction_rate: Annotated[float, typer.Option(help="the same in a zone that is mostly down")] = 0.01,
    unhealthy_zone_threshold: Annotated[float, typer.Option(help="fraction of nodes down that makes a zone unhealthy")] = 0.55,
    large_cluster_size_threshold: Annotated[int, typer.Option(help="nodes from which on a zone counts as large")] = 50,
    terminated_pod_gc_threshold: Annotated[int, typer.Option(help="finished pods kept; 0: all")] = 12500,
    max_endpoints_per_slice: Annotated[int, typer.Option(min=1, max=1000, help="endpoints in an EndpointSlice")] = 100,
    bind_address: Annotated[str, typer.Option(help="where health and metrics are served")] = "0.0.0.0",
    secure_port: Annotated[int, typer.Option(min=0, max=65535, help="port of health and metrics over HTTPS; 0: none")] = 0,
    tls_cert_file: Annotated[Path | None, typer.Option(help="serving certificate; default: one made for this run")] = None,
    tls_private_key_file: Annotated[Path | None, typer.Option(help="its key")] = None,
    concurrent_deployment_syncs: Workers = 5,
    concurrent_replicaset_syncs: Workers = 5,
    concurrent_rc_syncs: Annotated[int, typer.Option("--concurrent-rc-syncs", "--concurrent_rc_syncs", min=1, help="workers of that controller")] = 5,
    concurrent_endpoint_syncs: Workers = 5,
    concurrent_service_endpoint_syncs: Workers = 5,
    concurrent_namespace_syncs: Workers = 10,
    concurrent_gc_syncs: Workers = 20,
    concurrent_ttl_after_finished_syncs: Workers = 5,
    concurrent_statefulset_syncs: Workers = 5,
    concurrent_daemonset_syncs: Workers = 2,
    concurrent_job_syncs: Workers = 5,
    concurrent_cron_job_syncs: Workers = 5,
    concurrent_resource_quota_syncs: Workers = 5,
    concurrent_horizontal_pod_autoscaler_syncs: Workers = 5,
    concurrent_ephemeralvolume_syncs: Workers = 5,
) -> None:
    """Run the controllers."""
    given = dict(locals())
    if not kubeconfig:
        fail("--kubeconfig is needed")
    options = Options(
        cluster_cidr=cluster_cidr, allocate_node_cidrs=allocate_node_cidrs, node_cidr_mask_size=node_cidr_mask_size, service_cluster_ip_range=service_cluster_ip_range,
        cluster_signing_seconds=duration(cluster_signing_duration), node_monitor_grace_seconds=duration(node_monitor_grace_period),
        node_startup_grace_seconds=duration(node_startup_grace_period), node_eviction_rate=node_eviction_rate, secondary_node_eviction_rate=secondary_node_eviction_rate,
        unhealthy_zone_threshold=unhealthy_zone_threshold, large_cluster_size_threshold=large_cluster_size_threshold,
        terminated_pod_gc_threshold=terminated_pod_gc_threshold, max_endpoints_per_slice=max_endpoints_per_slice,
        concurrent={name: given[f"concurrent_{flag}_syncs"] for flag, name in _CONCURRENT.items()},
    )  # fmt: skip
    duration(node_monitor_period)
    config = Config(
        kubeconfig=kubeconfig, controllers=[c.strip() for text in controllers or ["*"] for c in text.split(",") if c.strip()],
        leader_elect=leader_elect, lease_name=leader_elect_resource_name, lease_namespace=leader_elect_resource_namespace,
        lease_seconds=duration(leader_elect_lease_duration), renew_deadline_seconds=duration(leader_elect_renew_deadline),
        retry_seconds=duration(leader_elect_retry_period), use_service_account_credentials=use_service_account_credentials,
        service_account_private_key_file=service_account_private_key_file, root_ca_file=root_ca_file, cluster_signing_cert_file=cluster_signing_cert_file,
        cluster_signing_key_file=cluster_signing_key_file, secure_port=secure_port, bind_address=bind_address, tls_cert_file=tls_cert_file,
        tls_private_key_file=tls_private_key_file, options=options,
    )  # fmt: skip
    serve("controller-manager", lambda stop: manager.run(config, stop), (KubeconfigError, ManagerError))
