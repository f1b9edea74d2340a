"""Client certificates and the front proxy that speaks for others with one (X-Remote-User and its kin).

The TLS handshake proved that the client holds the key and that one of the authorities signed. Which one, and until when, is checked here, once
per certificate: the cluster's authority makes the holder CN (groups: O), the front proxy's authority lets the holder say who the user is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastkube.api.errors import unauthorized
from fastkube.runtime import clock
from fastkube.server.request import User

CERTIFICATES_MAX = 16384
AUTHENTICATED = "system:authenticated"
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"


class ConfigError(ValueError):
    """A file of the configuration cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Known:
    """A verified certificate."""

    user: User | None  # None: no user certificate, but perhaps the front proxy's
    proxy: bool
    expires: float


def load_authorities(path: Path | None) -> list[x509.Certificate]:
    """The certificates of a PEM bundle; none when `path` is None. Raises ConfigError."""
    if path is None:
        return []
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot load the certificate authorities {path}: {e}") from e


class Certificates:
    def __init__(self, client_ca: Path | None, front_proxy_ca: Path | None, front_proxy_names: Sequence[str] = ()) -> None:
        self._clients = load_authorities(client_ca)
        self._proxies = load_authorities(front_proxy_ca)
        self._names = frozenset(front_proxy_names)
        self._known: dict[bytes, Known] = {}

    def authenticate(self, der: bytes, headers: dict[str, str]) -> User | None:
        """The user of the certificate `der`, or the one its holder, the front proxy, names. None: it names nobody. ApiError 401."""
        known = self._known.get(der)
        if known is None:
            known = self._look(der)
        if known.expires <= clock.now():
            raise unauthorized()
        if known.proxy and "x-remote-user" in headers:
            return remote_user(headers)
        return known.user

    def _look(self, der: bytes) -> Known:
        try:
            cert = x509.load_der_x509_certificate(der)
            names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            organizations = cert.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
            starts, ends = cert.not_valid_before_utc.timestamp(), cert.not_valid_after_utc.timestamp()
            proxy = _signed(cert, self._proxies) and (not self._names or any(n.value in self._names for n in names))
            client = bool(names) and _signed(cert, self._clients) and _for_clients(cert)
        except ValueError:
            raise unauthorized() from None
        if not (proxy or client) or starts > clock.now():
            raise unauthorized()
        user = None
        if client:
            groups = (*(str(o.value) for o in organizations), AUTHENTICATED)
            user = User(str(names[0].value), groups, "", {CREDENTIAL_ID: ("X509SHA256=" + hashlib.sha256(der).hexdigest(),)})
        while len(self._known) >= CERTIFICATES_MAX:
            del self._known[next(iter(self._known))]
        known = self._known[der] = Known(user, proxy, ends)
        return known


def _signed(cert: x509.Certificate, authorities: list[x509.Certificate]) -> bool:
    for authority in authorities:
        if cert.issuer != authority.subject:
            continue
        try:
            cert.verify_directly_issued_by(authority)
        except Exception:  # cryptography raises ValueError, TypeError or InvalidSignature, all of which mean no
            continue
        return True
    return False


def _for_clients(cert: x509.Certificate) -> bool:
    try:
        usages = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages


def remote_user(headers: dict[str, str]) -> User | None:
    """The user that the front proxy names (repeated headers come joined by commas); None when it names nobody."""
    name = headers.get("x-remote-user", "").strip()
    if not name:
        return None
    groups = split(headers.get("x-remote-group", ""))
    return User(name, (*groups, *(() if AUTHENTICATED in groups else (AUTHENTICATED,))), headers.get("x-remote-uid", ""), extras(headers, "x-remote-extra-"))


def split(value: str) -> tuple[str, ...]:
    return tuple(part for part in (p.strip() for p in value.split(",")) if part)


def extras(headers: dict[str, str], prefix: str) -> dict[str, tuple[str, ...]]:
    """Headers PREFIX<percent-encoded key> -> user.Info's extra."""
    found: dict[str, tuple[str, ...]] = {}
    for name, value in headers.items():
        if name.startswith(prefix):
            key = unquote(name[len(prefix) :]).lower()
            found[key] = (*found.get(key, ()), *split(value))
    return found
