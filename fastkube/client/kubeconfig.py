"""kubeconfig files (client.authentication: certificates, tokens, token files; data embedded or in files beside the kubeconfig).

`load` gives a ready Client; `write` makes the kubeconfig that each part of a cluster gets. Relative file names are relative to the
kubeconfig's directory, as kubectl reads them.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import yaml

from fastkube.client.rest import Client
from fastkube.client.transport import HttpTransport
from fastkube.runtime.config import write_file

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class KubeconfigError(ValueError):
    """The file is missing, is no kubeconfig, or names what it does not hold."""


def load(path: str | Path, context: str | None = None, *, user_agent: str = "") -> Client:
    """The client of `context` (default: the current one). Raises KubeconfigError saying what is wrong with which file."""
    return Client(transport(path, context, user_agent=user_agent))


def transport(path: str | Path, context: str | None = None, *, user_agent: str = "", anonymous: bool = False) -> HttpTransport:
    """As `load`, but just the transport; `anonymous`: to the same server, without the credentials of the file's user."""
    path = Path(path)
    config = _read(path)
    name = context or config.get("current-context") or ""
    chosen = _entry(path, config, "contexts", name, "context")
    cluster = _entry(path, config, "clusters", chosen.get("cluster", ""), "cluster")
    user = _entry(path, config, "users", chosen["user"], "user") if chosen.get("user") and not anonymous else {}
    server = cluster.get("server")
    if not server:
        raise KubeconfigError(f"{path}: cluster {chosen.get('cluster')!r} has no server")
    if "exec" in user or "auth-provider" in user:
        raise KubeconfigError(f"{path}: user {chosen['user']!r}: exec and auth-provider plugins are not supported")
    try:
        return HttpTransport(
            server,
            ca=_data_or_file(path, cluster, "certificate-authority"),
            cert=_data_or_file(path, user, "client-certificate"),
            key=_data_or_file(path, user, "client-key"),
            insecure_skip_tls_verify=bool(cluster.get("insecure-skip-tls-verify")),
            server_hostname=cluster.get("tls-server-name"),
            user_agent=user_agent,
            token=user.get("token", ""),
            token_file=_beside(path, user.get("tokenFile")),
        )
    except ValueError as e:
        raise KubeconfigError(f"{path}: {e}") from e


def namespace(path: str | Path, context: str | None = None) -> str:
    """The namespace that the context works in."""
    config = _read(Path(path))
    return _entry(Path(path), config, "contexts", context or config.get("current-context") or "", "context").get("namespace") or "default"


def make(server: str, *, ca: bytes, cert: bytes = b"", key: bytes = b"", token: str = "", cluster: str = "fastkube", user: str = "admin") -> dict[str, Any]:
    """A kubeconfig object with one context and everything embedded; PEM data as bytes."""
    b64 = lambda data: base64.b64encode(data).decode()  # noqa: E731
    credentials = {"client-certificate-data": b64(cert), "client-key-data": b64(key)} if cert else {"token": token}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": b64(ca)}}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": f"{user}@{cluster}", "context": {"cluster": cluster, "user": user}}],
        "current-context": f"{user}@{cluster}",
    }


def write(path: str | Path, config: dict[str, Any]) -> None:
    """Write for the owner only: it holds a key."""
    write_file(Path(path), yaml.safe_dump(config, sort_keys=False), mode=0o600)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_bytes(), LOADER)
    except OSError as e:
        raise KubeconfigError(f"cannot read kubeconfig {path}: {e.strerror}") from e
    except yaml.YAMLError as e:
        raise KubeconfigError(f"{path} is not YAML: {e}") from e
    if not isinstance(config, dict):
        raise KubeconfigError(f"{path} is not a kubeconfig")
    return config


def _entry(path: Path, config: dict[str, Any], section: str, name: str, what: str) -> dict[str, Any]:
    for entry in config.get(section) or ():
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry.get(what) or {}
    raise KubeconfigError(f"{path}: no {what} {name!r}")


def _beside(path: Path, name: str | None) -> Path | None:
    return path.parent / os.path.expanduser(name) if name else None


def _data_or_file(path: Path, entry: dict[str, Any], key: str) -> Path | bytes | None:
    if data := entry.get(f"{key}-data"):
        try:
            return base64.b64decode(data, validate=False)
        except (binascii.Error, ValueError, TypeError) as e:
            raise KubeconfigError(f"{path}: {key}-data is not base64") from e
    return _beside(path, entry.get(key))
