"""Bearer tokens that are strings known beforehand: the static token file and bootstrap tokens (Secrets in kube-system)."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastkube.api import resources
from fastkube.runtime import clock
from fastkube.server.authn.authenticator import Dependency, InvalidToken, Verdict
from fastkube.server.authn.certificates import ConfigError
from fastkube.server.reader import Reader
from fastkube.server.request import User

SECRETS = resources.parse("v1/secrets")
BOOTSTRAP_TYPE = "bootstrap.kubernetes.io/token"
BOOTSTRAP_GROUP = "system:bootstrappers"
_BOOTSTRAP = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_BOOTSTRAP_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")


class StaticTokens:
    """The token file: lines of `token,user,uid,"group1,group2"`. Kept by digest, so that a lookup tells nothing by its time."""

    def __init__(self, users: dict[str, User]) -> None:
        self._users = {_digest(token): user for token, user in users.items()}

    @classmethod
    def load(cls, path: Path) -> StaticTokens:
        """Raises ConfigError with file and line."""
        users: dict[str, User] = {}
        try:
            with path.open(newline="", encoding="utf-8") as f:
                for number, row in enumerate(csv.reader(f, skipinitialspace=True), 1):
                    if not row or row[0].startswith("#"):
                        continue
                    if len(row) < 3:
                        raise ConfigError(f"{path}:{number}: expected at least 3 columns (token, user name, user uid), found {len(row)}")
                    if not row[0]:
                        raise ConfigError(f"{path}:{number}: an empty token")
                    groups = tuple(g.strip() for g in row[3].split(",") if g.strip()) if len(row) > 3 else ()
                    users[row[0]] = User(row[1], groups, row[2])
        except (OSError, UnicodeDecodeError, csv.Error) as e:
            raise ConfigError(f"cannot load the token file {path}: {e}") from e
        return cls(users)

    def authenticate(self, token: str, audiences: tuple[str, ...]) -> Verdict | None:
        user = self._users.get(_digest(token)) if self._users else None
        return Verdict(user, audiences) if user else None

    def watch(self, changed: Callable[[Dependency], None]) -> None:
        """The file is read once: nothing changes."""


class BootstrapTokens:
    """ID.SECRET, good while Secret kube-system/bootstrap-token-ID says so (usage-bootstrap-authentication, expiration)."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def authenticate(self, token: str, audiences: tuple[str, ...]) -> Verdict | None:
        match = _BOOTSTRAP.fullmatch(token)
        if not match:
            return None
        name = f"bootstrap-token-{match[1]}"
        secret = self._reader.get(SECRETS, "kube-system", name)
        if secret is None or secret.get("type") != BOOTSTRAP_TYPE or "deletionTimestamp" in secret["metadata"]:
            return None
        data = {key: _decoded(value) for key, value in (secret.get("data") or {}).items()}
        if data.get("token-id") != match[1] or not hmac.compare_digest(data.get("token-secret", ""), match[2]):
            return None
        if data.get("usage-bootstrap-authentication") != "true":
            raise InvalidToken("the bootstrap token is not for authentication")
        expires = float("inf")
        if data.get("expiration"):
            try:
                expires = clock.parse(data["expiration"])
            except ValueError:
                raise InvalidToken("the bootstrap token's expiration is no time") from None
            if expires <= clock.now():
                raise InvalidToken("the bootstrap token has expired")
        groups = [g.strip() for g in data.get("auth-extra-groups", "").split(",") if g.strip()]
        if not all(_BOOTSTRAP_GROUP.fullmatch(g) for g in groups):
            raise InvalidToken("the bootstrap token's groups are not bootstrap groups")
        return Verdict(User(f"system:bootstrap:{match[1]}", (BOOTSTRAP_GROUP, *groups)), audiences, expires, (("secrets", "kube-system", name),))

    def watch(self, changed: Callable[[Dependency], None]) -> None:
        def on_secret(new: dict[str, Any] | None, old: dict[str, Any] | None) -> None:
            if old is not None and old.get("type") == BOOTSTRAP_TYPE:
                changed(("secrets", old["metadata"].get("namespace", ""), old["metadata"]["name"]))

        self._reader.on_change(SECRETS, on_secret)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value).decode()
    except ValueError:
        return ""
