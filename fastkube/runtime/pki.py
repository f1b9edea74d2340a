"""The cluster's certificates and keys: made at the first start, used again at every later one, renewed before they expire.

Guarantees: a private key is on disk with mode 0600 from its creation on; a file is whole or absent; a certificate whose authority, names or
remaining life no longer fit is issued anew with the key it has; the authorities and the service-account key are never replaced. Processes that
start at once on one directory take turns (a lock file).

File names and layout are those of kubeadm's /etc/kubernetes/pki (https://kubernetes.io/docs/setup/best-practices/certificates/), so that tools
which know one know the other; client certificates that kubeadm embeds in its kubeconfigs, and the nodes' own, lie beside:

    ca.crt ca.key                         apiserver.crt apiserver.key       apiserver-kubelet-client.{crt,key}
    front-proxy-ca.{crt,key}              front-proxy-client.{crt,key}      sa.key sa.pub
    admin.{crt,key} controller-manager.{crt,key} scheduler.{crt,key} proxy.{crt,key} dns.{crt,key}
    nodes/NAME.{crt,key} (client)         nodes/NAME-serving.{crt,key} (the node agent's HTTPS server)
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import fcntl
import ipaddress
import os
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastkube.runtime import clock
from fastkube.runtime.config import write_file

AUTHORITY_LIFE_SECONDS = 10 * 365 * 86400
CERTIFICATE_LIFE_SECONDS = 365 * 86400
RENEW_BEFORE_SECONDS = 30 * 86400
COMMON_NAME_CHARACTERS_MAX = 64  # RFC 5280's ub-common-name
BACKDATE_SECONDS = 300  # clocks of machines differ

SERVICE_IP_DEFAULT = "10.96.0.1"
CLUSTER_DOMAIN = "cluster.local"

# Client certificates by name -> (common name, organizations): the users and groups that upstream's default roles are bound to. The DNS server is
# the service account that the CoreDNS manifest uses (bootstrap binds its role).
CLIENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("kubernetes-admin", ("system:masters",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "proxy": ("system:kube-proxy", ()),
    "dns": ("system:serviceaccount:kube-system:coredns", ("system:serviceaccounts", "system:serviceaccounts:kube-system")),
    "apiserver-kubelet-client": ("kube-apiserver-kubelet-client", ()),
}


class PkiError(Exception):
    """What is in the directory cannot be used; the message names the file."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a certificate and its private key lie (PEM)."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in memory: issues certificates for public keys."""

    cert: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    @classmethod
    def load(cls, pair: Pair) -> Authority:
        """Raises PkiError when a file is missing or is no PEM of its kind."""
        key = _load_key(pair.key)
        return cls(_load_cert(pair.cert), key)

    def issue(
        self,
        public_key: CertificatePublicKeyTypes,
        name: str,
        organizations: Sequence[str] = (),
        *,
        hosts: Iterable[str] = (),
        server: bool = False,
        client: bool = False,
        life_seconds: float = CERTIFICATE_LIFE_SECONDS,
    ) -> x509.Certificate:
        """A leaf certificate for CN `name`; `hosts` are DNS names and IP addresses; it never outlives the authority."""
        usages = [oid for wanted, oid in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (client, ExtendedKeyUsageOID.CLIENT_AUTH)) if wanted]
        sans = [_general_name(h) for h in dict.fromkeys(hosts)]
        builder = (
            _builder(_subject(name, organizations), public_key, life_seconds, self.cert.not_valid_after_utc)
            .issuer_name(self.cert.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return builder.sign(self.key, SHA256())

    def issued(self, cert: x509.Certificate) -> bool:
        """Whether this authority signed `cert`."""
        try:
            cert.verify_directly_issued_by(self.cert)
        except Exception:  # cryptography raises ValueError, TypeError or InvalidSignature, all of which mean no
            return False
        return True


class Pki:
    """The certificates under one directory. Making one makes both authorities and the service-account key; the rest is made when asked for."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self.ca = self._pair("ca")
        self.front_proxy_ca = self._pair("front-proxy-ca")
        self.sa_key = self.directory / "sa.key"
        self.sa_pub = self.directory / "sa.pub"
        self._authorities: dict[Path, Authority] = {}
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            self._ensure_authority(self.ca, "kubernetes")
            self._ensure_authority(self.front_proxy_ca, "front-proxy-ca")
            self._ensure_service_account_key()

    @property
    def ca_pem(self) -> str:
        return self.ca.cert.read_text()

    def authority(self, pair: Pair | None = None) -> Authority:
        """The authority whose files are `pair` (default: the cluster's)."""
        pair = pair or self.ca
        if pair.cert not in self._authorities:
            self._authorities[pair.cert] = Authority.load(pair)
        return self._authorities[pair.cert]

    def apiserver(self, addresses: Iterable[str] = (), service_ip: str = SERVICE_IP_DEFAULT, domain: str = CLUSTER_DOMAIN) -> Pair:
        """The API server's serving certificate, valid for its names inside the cluster, this machine and `addresses` (IPs or DNS names)."""
        hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}", "localhost", "127.0.0.1", "::1", service_ip]
        return self._leaf("apiserver", "kube-apiserver", hosts=[*hosts, *addresses], server=True)

    def client(self, name: str) -> Pair:
        """The client certificate of one of CLIENTS ("admin", "scheduler" ...)."""
        common_name, organizations = CLIENTS[name]
        return self._leaf(name, common_name, organizations, client=True)

    def front_proxy_client(self) -> Pair:
        """What the API server shows to extension servers when it speaks for a user (aggregation)."""
        return self._leaf("front-proxy-client", "front-proxy-client", client=True, authority=self.front_proxy_ca)

    def node_client(self, node: str) -> Pair:
        """The node agent's client certificate: user system:node:NODE in group system:nodes."""
        return self._leaf(f"nodes/{node}", f"system:node:{node}", ("system:nodes",), client=True)

    def node_serving(self, node: str, addresses: Iterable[str] = ()) -> Pair:
        """The node agent's serving certificate, for the node's name and `addresses`."""
        return self._leaf(f"nodes/{node}-serving", f"system:node:{node}", ("system:nodes",), hosts=[node, *addresses], server=True)

    def kubeconfig(self, server: str, pair: Pair, user: str) -> str:
        """A kubeconfig (YAML) for `server` with this directory's authority and the files of `pair` embedded."""
        return kubeconfig(server, self.ca.cert.read_bytes(), pair.cert.read_bytes(), pair.key.read_bytes(), user=user)

    # -- making ---------------------------------------------------------------------------------------------------------------------------

    def _pair(self, name: str) -> Pair:
        return Pair(self.directory / f"{name}.crt", self.directory / f"{name}.key")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _ensure_authority(self, pair: Pair, name: str) -> None:
        if pair.cert.exists():
            return
        key = self._ensure_key(pair.key)
        subject = _subject(name)
        cert = (
            _builder(subject, key.public_key(), AUTHORITY_LIFE_SECONDS)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, SHA256())
        )
        write_file(pair.cert, cert.public_bytes(serialization.Encoding.PEM))
        self._authorities[pair.cert] = Authority(cert, key)

    def _ensure_service_account_key(self) -> None:
        key = self._ensure_key(self.sa_key)
        if not self.sa_pub.exists():
            write_file(self.sa_pub, key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))

    def _ensure_key(self, path: Path) -> CertificateIssuerPrivateKeyTypes:
        if path.exists():
            return _load_key(path)
        key = ec.generate_private_key(ec.SECP256R1())
        write_file(path, key_pem(key), 0o600)
        return key

    def _leaf(
        self,
        name: str,
        common_name: str,
        organizations: Sequence[str] = (),
        *,
        hosts: Iterable[str] = (),
        server: bool = False,
        client: bool = False,
        authority: Pair | None = None,
    ) -> Pair:
        pair, issuer, hosts = self._pair(name), self.authority(authority), list(hosts)
        with self._locked():
            pair.key.parent.mkdir(exist_ok=True)
            key = self._ensure_key(pair.key)
            if not self._fits(pair.cert, issuer, key, common_name, organizations, hosts):
                cert = issuer.issue(key.public_key(), common_name, organizations, hosts=hosts, server=server, client=client)
                write_file(pair.cert, cert.public_bytes(serialization.Encoding.PEM))
        return pair

    @staticmethod
    def _fits(path: Path, issuer: Authority, key: CertificateIssuerPrivateKeyTypes, name: str, organizations: Sequence[str], hosts: Iterable[str]) -> bool:
        """Whether the certificate at `path` is there and need not be issued anew."""
        if not path.exists():
            return False
        cert = _load_cert(path)
        if cert.not_valid_after_utc.timestamp() - clock.now() < RENEW_BEFORE_SECONDS:
            return False
        if cert.subject != _subject(name, organizations) or not issuer.issued(cert) or cert.public_key() != key.public_key():
            return False
        return {_general_name(h) for h in hosts} <= set(subject_alternative_names(cert))


def kubeconfig(server: str, ca: bytes, cert: bytes, key: bytes, *, user: str = "kubernetes-admin", cluster: str = "fastkube") -> str:
    """A kubeconfig (YAML) with the given PEM data embedded. Write it with mode 0600: it holds the private key."""
    context = f"{user}@{cluster}"
    encode = lambda data: base64.b64encode(data).decode()  # noqa: E731
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"certificate-authority-data": encode(ca), "server": server}}],
        "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
        "current-context": context,
        "users": [{"name": user, "user": {"client-certificate-data": encode(cert), "client-key-data": encode(key)}}],
    }
    return yaml.safe_dump(document, sort_keys=False)


def server_context(pair: Pair, client_cas: Sequence[Path] = (), *, required: bool = False) -> ssl.SSLContext:
    """For an HTTPS server, TLS 1.2 or later, HTTP/1.1.

    With `client_cas` a client may (`required`: must) show a certificate; one that none of them signed ends the handshake. Which of them signed
    is for the authenticator to say: they grant different things.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pair.cert, pair.key)
    context.set_alpn_protocols(["http/1.1"])
    for path in client_cas:
        context.load_verify_locations(path)
    if client_cas:
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def client_context(ca: Path | None, pair: Pair | None = None) -> ssl.SSLContext:
    """For an HTTPS client that trusts `ca` (None: the system's authorities) and shows `pair`."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pair:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def key_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    """A private key as unencrypted PEM: PKCS#8."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def subject_alternative_names(cert: x509.Certificate) -> list[x509.GeneralName]:
    """The names a certificate is valid for; empty when it has none."""
    try:
        return list(cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _subject(name: str, organizations: Sequence[str] = ()) -> x509.Name:
    if len(name) > COMMON_NAME_CHARACTERS_MAX:
        raise PkiError(f"the name {name!r} is too long for a certificate: at most {COMMON_NAME_CHARACTERS_MAX} characters")
    return x509.Name([*(x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations), x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(subject: x509.Name, key: CertificatePublicKeyTypes, life_seconds: float, until: datetime.datetime | None = None) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(int(clock.now()), datetime.UTC)
    end = now + datetime.timedelta(seconds=life_seconds)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=BACKDATE_SECONDS))
        .not_valid_after(min(end, until) if until else end)
    )


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        key_cert_sign=authority,
        crl_sign=False,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_cert(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as e:
        raise PkiError(f"cannot load the certificate {path}: {e}") from e


def _load_key(path: Path) -> CertificateIssuerPrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), None)  # type: ignore[return-value]
    except (OSError, ValueError, TypeError) as e:
        raise PkiError(f"cannot load the private key {path}: {e}") from e
