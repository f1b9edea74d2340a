"""What the API server's flags say (upstream's kube-apiserver names in the comments)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastkube.runtime.pki import Pair
from fastkube.server import audit
from fastkube.server.allocators import SERVICE_CIDR_DEFAULT

ISSUER_DEFAULT = "https://kubernetes.default.svc.cluster.local"


class StartError(Exception):
    """The server cannot start; the text says why and what to do."""


@dataclass(slots=True)
class Config:
    data_dir: Path | None = None  # --data-dir, of the embedded store; None: in memory
    bind_addresses: Sequence[str] = ("127.0.0.1",)  # --bind-address
    secure_port: int = 6443  # --secure-port; 0: a free one
    advertise_address: str = "127.0.0.1"  # --advertise-address
    tls_cert_file: Path | None = None  # --tls-cert-file; None: plain HTTP, on loopback addresses only
    tls_private_key_file: Path | None = None  # --tls-private-key-file
    client_ca_file: Path | None = None  # --client-ca-file
    token_auth_file: Path | None = None  # --token-auth-file
    anonymous_auth: bool = True  # --anonymous-auth
    enable_bootstrap_token_auth: bool = True  # --enable-bootstrap-token-auth
    authorization_mode: Sequence[str] = ("Node", "RBAC")  # --authorization-mode
    service_cluster_ip_range: str = SERVICE_CIDR_DEFAULT  # --service-cluster-ip-range, one or two ranges
    service_node_port_range: str = "30000-32767"  # --service-node-port-range
    service_account_key_files: Sequence[Path] = ()  # --service-account-key-file
    service_account_signing_key_file: Path | None = None  # --service-account-signing-key-file
    service_account_issuers: Sequence[str] = (ISSUER_DEFAULT,)  # --service-account-issuer
    service_account_jwks_uri: str = ""  # --service-account-jwks-uri
    api_audiences: Sequence[str] = ()  # --api-audiences
    kubelet_client: Pair | None = None  # --kubelet-client-certificate, --kubelet-client-key
    kubelet_certificate_authority: Path | None = None  # --kubelet-certificate-authority
    kubelet_preferred_address_types: Sequence[str] = ("InternalIP", "Hostname", "ExternalIP")  # --kubelet-preferred-address-types
    kubelet_timeout_seconds: float = 5.0  # --kubelet-timeout
    requestheader_client_ca_file: Path | None = None  # --requestheader-client-ca-file
    requestheader_allowed_names: Sequence[str] = ("front-proxy-client",)  # --requestheader-allowed-names
    proxy_client: Pair | None = None  # --proxy-client-cert-file, --proxy-client-key-file
    enable_admission_plugins: Sequence[str] = ()  # --enable-admission-plugins
    disable_admission_plugins: Sequence[str] = ()  # --disable-admission-plugins
    fsync: bool = True  # --unsafe-no-fsync turns it off
    event_ttl_seconds: int = 3600  # --event-ttl
    enable_priority_and_fairness: bool = True  # --enable-priority-and-fairness
    max_requests_inflight: int = 400  # --max-requests-inflight
    max_mutating_requests_inflight: int = 200  # --max-mutating-requests-inflight; both together are the seats of priority and fairness
    audit: audit.Config = field(default_factory=audit.Config)  # --audit-*
    shutdown_grace_seconds: float = 5.0  # in-flight requests at the end
