"""The live store of an API server behind etcd's API (`--etcd-listen-client-urls`), for etcdctl and backups.

Whoever reads the store reads every secret, past all authorization: only certificates of system:masters are let in.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from fastkube.store.embedded import EmbeddedStore
from fastkube.store.etcd.errors import ListenError
from fastkube.store.etcd.member import Options, Tls
from fastkube.store.interface import Store

ORGANIZATION = "system:masters"
STATE = "etcd.json"


def urls_of(text: str) -> list[str]:
    """A comma list of URLs, as flags have it."""
    return [url.strip() for url in text.split(",") if url.strip()]


def tls_of(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    return Tls(cert, key, client_ca, client_cert_auth=True, organization=ORGANIZATION) if cert and key and client_ca else None


@contextlib.asynccontextmanager
async def etcd_face(store: Store, urls: Sequence[str], tls: Tls | None, data_dir: Path | None) -> AsyncIterator[None]:
    """Serve while the block runs; nothing without URLs. In the clear on loopback addresses only. Raises ListenError."""
    if not urls:
        yield
        return
    for url in urls:
        if urlsplit(url).scheme != "https" and (tls is not None or not _loopback(urlsplit(url).hostname or "")):
            raise ListenError(f"--etcd-listen-client-urls {url}: https only, with client certificates")
    if not isinstance(store, EmbeddedStore):
        raise ListenError("--etcd-listen-client-urls: this store is an etcd cluster itself")
    from fastkube.store.etcd.server import EtcdServer  # (its messages take time to build, and most clusters go without)

    server = EtcdServer(store, Options(name="fastkube", client_urls=urls, quota_bytes=0), None if data_dir is None else data_dir / STATE)
    try:
        await server.listen(urls, tls)
        yield
    finally:
        await server.close()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
