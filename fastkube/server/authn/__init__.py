"""Who asks: from a request to a `User`, in upstream's order (front proxy, client certificate, bearer token, anonymous).

    authenticator = authn.build(Config(...), reader)
    user = authenticator.authenticate(request)          # synchronous; ApiError 401
    user = impersonation.apply(request.headers, user, authorizer)   # ApiError 403; the same user when nothing is asked
    await/handlers: reviews.token_request, reviews.token_review, reviews.self_subject_review, reviews.openid_configuration, reviews.jwks

Guarantees: nothing is trusted that this package has not verified itself; an answer from the cache costs under a microsecond and is never older
than the object it depends on (caches are emptied by the store's changes and by expiry, not by guesses about time). Handlers that hand a request
on to another server must drop its Authorization, X-Remote-* and Impersonate-* headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastkube.server.authn.authenticator import Authenticator
from fastkube.server.authn.certificates import Certificates
from fastkube.server.authn.serviceaccounts import Issuer, Verifier
from fastkube.server.authn.tokens import BootstrapTokens, StaticTokens
from fastkube.server.reader import Reader

__all__ = ["Authenticator", "Config", "Issuer", "build", "issuer"]

ISSUER_DEFAULT = "https://kubernetes.default.svc.cluster.local"


@dataclass(slots=True)
class Config:
    """What the API server's authentication flags say; a path left None switches its method off."""

    client_ca: Path | None = None  # --client-ca-file
    front_proxy_ca: Path | None = None  # --requestheader-client-ca-file
    front_proxy_names: Sequence[str] = ("front-proxy-client",)  # --requestheader-allowed-names; empty: any
    token_file: Path | None = None  # --token-auth-file
    sa_keys: Sequence[Path] = ()  # --service-account-key-file, public or private, several while keys are rotated
    sa_signing_key: Path | None = None  # --service-account-signing-key-file
    issuers: Sequence[str] = (ISSUER_DEFAULT,)  # --service-account-issuer; the first signs
    audiences: Sequence[str] = ()  # --api-audiences; empty: the issuers
    jwks_uri: str = ""  # --service-account-jwks-uri
    anonymous: bool = True  # --anonymous-auth
    bootstrap_tokens: bool = True  # --enable-bootstrap-token-auth

    @property
    def api_audiences(self) -> tuple[str, ...]:
        return tuple(self.audiences or self.issuers)


def build(config: Config, reader: Reader) -> Authenticator:
    """Raises ConfigError (a ValueError that names the file) when a file cannot be used."""
    verifier = Verifier(reader, config.issuers, config.api_audiences, config.sa_keys) if config.sa_keys else None
    return Authenticator(
        certificates=Certificates(config.client_ca, config.front_proxy_ca, config.front_proxy_names),
        static=StaticTokens.load(config.token_file) if config.token_file else StaticTokens({}),
        service_accounts=verifier,
        bootstrap=BootstrapTokens(reader) if config.bootstrap_tokens else None,
        audiences=config.api_audiences,
        anonymous=config.anonymous,
    )


def issuer(config: Config) -> Issuer:
    """What signs service-account tokens and describes itself (OIDC discovery)."""
    return Issuer(config.issuers[0], config.api_audiences, config.sa_signing_key, config.sa_keys, config.jwks_uri)
