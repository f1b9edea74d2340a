"""Service-account tokens: JWTs signed here and verified against the objects they are bound to.

A token is good while its signature, issuer, audience and times are, its ServiceAccount exists with the uid it names, and so does the Pod, Secret
or Node it is bound to (KEP-1205, KEP-4193). Legacy tokens (issuer kubernetes/serviceaccount) live as long as the Secret that holds them.
Keys have the id that upstream gives them: base64url(SHA-256(DER of the public key)).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fastkube.api import resources
from fastkube.runtime import clock, entropy
from fastkube.server.authn.authenticator import Dependency, InvalidToken, Verdict
from fastkube.server.authn.certificates import CREDENTIAL_ID, ConfigError
from fastkube.server.reader import Object, Reader
from fastkube.server.request import User

LEGACY_ISSUER = "kubernetes/serviceaccount"
USER_PREFIX = "system:serviceaccount:"
GROUP = "system:serviceaccounts"
LEEWAY_SECONDS = 60  # clocks of API servers differ; also how long the token of an object outlives its deletionTimestamp
EXTENDED_SECONDS = 365 * 86400  # life of the tokens that pods have mounted: old clients never read the file again
EXTENDED_ASKED_SECONDS = 3607  # the expirationSeconds that marks them (ServiceAccount admission asks for it)

SERVICE_ACCOUNTS = resources.parse("v1/serviceaccounts")
BOUND = {"Pod": resources.parse("v1/pods"), "Secret": resources.parse("v1/secrets"), "Node": resources.parse("v1/nodes")}
_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_jws = jwt.PyJWS()


class Key:
    """A key pair's public half, its id and its algorithm."""

    __slots__ = ("algorithm", "id", "public")

    def __init__(self, public: Any) -> None:
        self.public = public
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.id = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
        if isinstance(public, rsa.RSAPublicKey):
            self.algorithm = "RS256"
        elif isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in _ALGORITHMS:
            self.algorithm = _ALGORITHMS[public.curve.name]
        else:
            raise ValueError("service-account keys are RSA or ECDSA on P-256, P-384 or P-521")

    def jwk(self) -> dict[str, str]:
        """RFC 7517."""
        algorithm: Any = jwt.get_algorithm_by_name(self.algorithm)
        fields = algorithm.to_jwk(self.public, as_dict=True)
        return {"use": "sig", "kty": fields["kty"], "kid": self.id, "alg": self.algorithm, **{k: fields[k] for k in ("crv", "x", "y", "n", "e") if k in fields}}


def load_keys(path: Path) -> list[Key]:
    """The public halves of all keys in a PEM file (public keys, private keys, certificates). Raises ConfigError."""
    try:
        text = path.read_bytes()
        keys = []
        for block in text.split(b"-----BEGIN ")[1:]:
            pem = b"-----BEGIN " + block
            keys.append(Key(serialization.load_pem_private_key(pem, None).public_key() if b"PRIVATE" in block else serialization.load_pem_public_key(pem)))
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"cannot load the service-account keys {path}: {e}") from e
    if not keys:
        raise ConfigError(f"cannot load the service-account keys {path}: no PEM data in it")
    return keys


class Issuer:
    """Signs tokens and publishes the keys that verify them."""

    def __init__(self, issuer: str, audiences: Sequence[str], signing_key: Path | None, keys: Sequence[Path], jwks_uri: str = "") -> None:
        self.issuer = issuer
        self.audiences = tuple(audiences)
        self.jwks_uri = jwks_uri
        self.keys = list({key.id: key for path in (*([signing_key] if signing_key else []), *keys) for key in load_keys(path)}.values())
        self._private: Any = None
        if signing_key:
            try:
                self._private = serialization.load_pem_private_key(signing_key.read_bytes(), None)
            except (OSError, ValueError, TypeError) as e:
                raise ConfigError(f"cannot load the service-account signing key {signing_key}: {e}") from e

    def sign(self, account: Object, audiences: Sequence[str], seconds: int, bound: Object | None = None, node: Object | None = None) -> tuple[str, float]:
        """A token for `account`, bound to `bound` (a Pod, Secret or Node object) -> (token, wall second at which its holder must ask again).

        `node` is the Node a bound pod runs on. Raises RuntimeError when there is no signing key.
        """
        if self._private is None:
            raise RuntimeError("no service-account signing key is configured")
        now = int(clock.now())
        meta = account["metadata"]
        private: dict[str, Any] = {"namespace": meta["namespace"], "serviceaccount": {"name": meta["name"], "uid": meta["uid"]}}
        life = seconds
        if bound is not None:
            kind = bound["kind"].lower()
            private[kind] = {"name": bound["metadata"]["name"], "uid": bound["metadata"]["uid"]}
            if kind == "pod" and node is not None:
                private["node"] = {"name": node["metadata"]["name"], "uid": node["metadata"]["uid"]}
            if kind == "pod" and seconds == EXTENDED_ASKED_SECONDS and set(audiences) <= set(self.audiences):
                life = EXTENDED_SECONDS
                private["warnafter"] = now + seconds
        claims = {
            "aud": list(audiences), "exp": now + life, "iat": now, "iss": self.issuer, "jti": entropy.uid(), "kubernetes.io": private, "nbf": now,
            "sub": f"{USER_PREFIX}{meta['namespace']}:{meta['name']}",
        }  # fmt: skip
        token = _jws.encode(orjson.dumps(claims), self._private, algorithm=self.keys[0].algorithm, headers={"kid": self.keys[0].id, "typ": None})
        return token, now + seconds

    def configuration(self, server: str) -> dict[str, Any]:
        """/.well-known/openid-configuration (OpenID Connect Discovery 1.0); `server` is the URL where this server's keys are found."""
        return {
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri or f"{server}/openid/v1/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": sorted({key.algorithm for key in self.keys}),
        }

    def jwks(self) -> dict[str, Any]:
        """/openid/v1/jwks."""
        return {"keys": [key.jwk() for key in self.keys]}


class Verifier:
    """The token method for service accounts."""

    def __init__(self, reader: Reader, issuers: Sequence[str], audiences: Sequence[str], keys: Sequence[Path]) -> None:
        self._reader = reader
        self._issuers = frozenset((*issuers, LEGACY_ISSUER))
        self._audiences = tuple(audiences)
        self._keys = [key for path in keys for key in load_keys(path)]

    def authenticate(self, token: str, audiences: tuple[str, ...]) -> Verdict | None:
        claims = self._claims(token)
        if claims is None:
            return None
        self._check_signature(token)
        if claims["iss"] == LEGACY_ISSUER:
            return self._legacy(token, claims, audiences)
        return self._bound(claims, audiences)

    def watch(self, changed: Callable[[Dependency], None]) -> None:
        """Any change of what a token hangs on has it verified anew; that is cheaper than asking whether it mattered."""

        def listen(plural: str) -> Callable[[str, str, Object | None], None]:
            return lambda namespace, name, new: changed((plural, namespace, name))

        for resource in (SERVICE_ACCOUNTS, *BOUND.values()):
            self._reader.on_commit(resource, listen(resource.plural))

    def _claims(self, token: str) -> dict[str, Any] | None:
        """The claims, not yet to be believed, of a JWT that names one of our issuers; else None."""
        parts = token.split(".")
        if len(parts) != 3:
            return None
        try:
            claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        except ValueError:
            return None
        return claims if isinstance(claims, dict) and isinstance(claims.get("iss"), str) and claims["iss"] in self._issuers else None

    def _check_signature(self, token: str) -> None:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as e:
            raise InvalidToken("malformed JWT header") from e
        candidates = [key for key in self._keys if not kid or key.id == kid] or self._keys
        for key in candidates:
            try:
                _jws.decode(token, key.public, algorithms=[key.algorithm])
                return
            except jwt.PyJWTError:
                continue
        raise InvalidToken("the token's signature is not by one of the service-account keys")

    def _bound(self, claims: dict[str, Any], audiences: tuple[str, ...]) -> Verdict:
        now = clock.now()
        expires = _number(claims, "exp")
        if expires <= now - LEEWAY_SECONDS:
            raise InvalidToken("service account token has expired")
        if max(_number(claims, "nbf", 0), _number(claims, "iat", 0)) > now + LEEWAY_SECONDS:
            raise InvalidToken("service account token is not valid yet")
        asked = claims.get("aud")
        asked = [asked] if isinstance(asked, str) else asked
        if not isinstance(asked, list):
            raise InvalidToken("the token has no audiences")
        common = tuple(a for a in audiences if a in asked)
        if not common:
            raise InvalidToken(f"token audiences {_go_list(asked)} is invalid for the target audiences {_go_list(audiences)}")
        private = claims.get("kubernetes.io")
        if not isinstance(private, dict):
            raise InvalidToken("the token has no kubernetes.io claims")
        namespace, account = private.get("namespace"), _reference(private, "serviceaccount")
        if not isinstance(namespace, str) or not namespace or account is None or claims.get("sub") != f"{USER_PREFIX}{namespace}:{account[0]}":
            raise InvalidToken("the token's claims do not agree")
        until = self._lives(SERVICE_ACCOUNTS, namespace, account, "service account")
        depends = [("serviceaccounts", namespace, account[0])]
        extra: dict[str, tuple[str, ...]] = {}
        for kind in ("Pod", "Secret", "Node"):
            reference = _reference(private, kind.lower())
            if reference is None:
                continue
            if kind == "Node" and "pod" in private:  # the node of a bound pod: told, not checked (the pod's own uid is)
                _name(extra, "node", reference)
                continue
            where = "" if kind == "Node" else namespace
            until = min(until, self._lives(BOUND[kind], where, reference, kind.lower()))
            depends.append((BOUND[kind].plural, where, reference[0]))
            if kind != "Secret":
                _name(extra, kind.lower(), reference)
        if isinstance(claims.get("jti"), str):
            extra[CREDENTIAL_ID] = ("JTI=" + claims["jti"],)
        return Verdict(service_account_user(namespace, account[0], account[1], extra), common, min(expires + LEEWAY_SECONDS, until), tuple(depends))

    def _legacy(self, token: str, claims: dict[str, Any], audiences: tuple[str, ...]) -> Verdict:
        prefix = "kubernetes.io/serviceaccount/"
        namespace, secret_name = claims.get(prefix + "namespace"), claims.get(prefix + "secret.name")
        account = (claims.get(prefix + "service-account.name"), claims.get(prefix + "service-account.uid"))
        if not all(isinstance(c, str) and c for c in (namespace, secret_name, *account)):
            raise InvalidToken("the legacy token's claims are not complete")
        common = tuple(a for a in audiences if a in self._audiences)
        if audiences and not common:
            raise InvalidToken(f"token audiences {_go_list(self._audiences)} is invalid for the target audiences {_go_list(audiences)}")
        if claims.get("sub") != f"{USER_PREFIX}{namespace}:{account[0]}":
            raise InvalidToken("the legacy token's claims do not agree")
        secret = self._reader.get(BOUND["Secret"], str(namespace), str(secret_name))
        if secret is None or "deletionTimestamp" in secret["metadata"]:
            raise InvalidToken("service account token has been invalidated")
        try:
            held = base64.b64decode((secret.get("data") or {}).get("token", ""))
        except ValueError:
            held = b""
        if not hmac.compare_digest(held, token.encode()):
            raise InvalidToken("service account token does not match server's copy")
        until = self._lives(SERVICE_ACCOUNTS, str(namespace), (str(account[0]), str(account[1])), "service account")
        depends = (("serviceaccounts", str(namespace), str(account[0])), ("secrets", str(namespace), str(secret_name)))
        return Verdict(service_account_user(str(namespace), str(account[0]), str(account[1]), {}), common, until, depends)

    def _lives(self, resource: resources.Resource, namespace: str, reference: tuple[str, str], what: str) -> float:
        """Until when the object stands as far as tokens go. Raises InvalidToken when it does not."""
        obj = self._reader.get(resource, namespace or None, reference[0])
        if obj is None or obj["metadata"]["uid"] != reference[1]:
            raise InvalidToken(f"the {what} that the token is bound to has been deleted")
        deletion = obj["metadata"].get("deletionTimestamp")
        if deletion is None:
            return float("inf")
        until = clock.parse(deletion) + LEEWAY_SECONDS
        if until <= clock.now():
            raise InvalidToken(f"the {what} that the token is bound to has been deleted")
        return until


def service_account_user(namespace: str, name: str, uid: str, extra: dict[str, tuple[str, ...]]) -> User:
    return User(f"{USER_PREFIX}{namespace}:{name}", (GROUP, f"{GROUP}:{namespace}"), uid, extra)


def _name(extra: dict[str, tuple[str, ...]], what: str, reference: tuple[str, str]) -> None:
    extra[f"authentication.kubernetes.io/{what}-name"] = (reference[0],)
    extra[f"authentication.kubernetes.io/{what}-uid"] = (reference[1],)


def _reference(private: dict[str, Any], key: str) -> tuple[str, str] | None:
    """A claim {name, uid}; None when it is absent. Raises InvalidToken when it is not of that form."""
    value = private.get(key)
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not isinstance(value.get("uid"), str):
        raise InvalidToken(f"malformed claim {key}")
    return value["name"], value["uid"]


def _number(claims: dict[str, Any], key: str, default: float | None = None) -> float:
    value = claims.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidToken(f"malformed claim {key}")
    return value


def _go_list(values: Sequence[str]) -> str:
    """As Go prints a []string with %q."""
    return "[" + " ".join(f'"{v}"' for v in values) + "]"
