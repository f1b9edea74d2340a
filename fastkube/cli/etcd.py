"""`fastkube etcd`: the embedded store behind etcd's API, with etcd's flags and ETCD_* environment variables.

One member: flags for several (peer URLs, initial cluster, election timing) are accepted with the values a single member may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fastkube.cli.flags import fail, serve
from fastkube.runtime.tasks import Supervisor
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.etcd.errors import ListenError
from fastkube.store.etcd.member import QUOTA_BYTES_DEFAULT, Options, Tls
from fastkube.store.etcd.restore import RestoreError, restore
from fastkube.store.etcd.server import EtcdServer, auto_compact
from fastkube.store.interface import StoreError

FOREVER_SECONDS = 1e12
FOREVER_BYTES = 1 << 60
AUTO_COMPACTION_SECONDS = 300.0  # between compactions by revision
DATA_DIR_STATE = "etcd.json"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _flag(name: str, text: str) -> Any:
    return typer.Option(f"--{name}", envvar="ETCD_" + name.upper().replace("-", "_"), help=text)


def _urls(text: str) -> list[str]:
    return [url.strip() for url in text.split(",") if url.strip()]


def seconds(text: str, flag: str) -> float:
    """A Go duration."""
    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+|0", text):
        fail(f'{flag}: "{text}" is no duration (write it as 1h30m or 5s)')
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", text))


def history(mode: str, retention: str) -> tuple[float, int]:
    """--auto-compaction-mode and -retention -> (history kept in seconds, in revisions; 0: no limit by revisions)."""
    if mode == "revision":
        if not retention.isdigit():
            fail(f'--auto-compaction-retention: "{retention}" is no number of revisions')
        return FOREVER_SECONDS, int(retention)
    if mode != "periodic":
        fail(f'--auto-compaction-mode: "{mode}" is neither periodic nor revision')
    kept = float(retention) * 3600 if retention.isdigit() else seconds(retention, "--auto-compaction-retention")
    return kept or FOREVER_SECONDS, 0


def _restore(file: Path, directory: Path, skip_hash_check: bool) -> None:
    try:
        revision, keys = asyncio.run(restore(file, directory, skip_hash_check=skip_hash_check))
    except (RestoreError, OSError) as e:
        fail(str(e))
    typer.echo(f"restored {file} to {directory}: revision {revision}, {keys} keys")


def command(
    action: Annotated[list[str] | None, typer.Argument(help="nothing: serve; `snapshot restore FILE`: make the data directory from a snapshot")] = None,
    name: Annotated[str, _flag("name", "name of this member")] = "default",
    data_dir: Annotated[Path | None, _flag("data-dir", "where everything is kept [default: NAME.etcd]")] = None,
    listen_client_urls: Annotated[str, _flag("listen-client-urls", "URLs to serve clients on")] = "http://localhost:2379",
    listen_client_http_urls: Annotated[str, _flag("listen-client-http-urls", "URLs for /health, /version and /metrics")] = "",
    advertise_client_urls: Annotated[str, _flag("advertise-client-urls", "URLs that clients are told [default: where it listens]")] = "",
    listen_metrics_urls: Annotated[str, _flag("listen-metrics-urls", "further URLs for /health and /metrics")] = "",
    listen_peer_urls: Annotated[str, _flag("listen-peer-urls", "a single member listens for no peers")] = "http://localhost:2380",
    initial_advertise_peer_urls: Annotated[str, _flag("initial-advertise-peer-urls", "this member's peer URLs, as told to clients")] = "http://localhost:2380",
    initial_cluster: Annotated[str, _flag("initial-cluster", "this member alone, NAME=URL")] = "",
    initial_cluster_state: Annotated[str, _flag("initial-cluster-state", "new")] = "new",
    initial_cluster_token: Annotated[str, _flag("initial-cluster-token", "has no meaning for a single member")] = "etcd-cluster",
    heartbeat_interval: Annotated[int, _flag("heartbeat-interval", "has no meaning for a single member")] = 100,
    election_timeout: Annotated[int, _flag("election-timeout", "has no meaning for a single member")] = 1000,
    snapshot_count: Annotated[int, _flag("snapshot-count", "accepted: the log is cut by its size")] = 100_000,
    quota_backend_bytes: Annotated[int, _flag("quota-backend-bytes", "space quota; 0: 2 GiB, negative: none")] = 0,
    auto_compaction_mode: Annotated[str, _flag("auto-compaction-mode", "periodic or revision")] = "periodic",
    auto_compaction_retention: Annotated[str, _flag("auto-compaction-retention", "hours, a duration, or revisions; 0: keep everything")] = "0",
    max_txn_ops: Annotated[int, _flag("max-txn-ops", "operations of one transaction")] = 128,
    max_request_bytes: Annotated[int, _flag("max-request-bytes", "size of one request")] = 1536 << 10,
    cert_file: Annotated[Path | None, _flag("cert-file", "PEM file of the serving certificate")] = None,
    key_file: Annotated[Path | None, _flag("key-file", "PEM file of its key")] = None,
    trusted_ca_file: Annotated[Path | None, _flag("trusted-ca-file", "who signs client certificates")] = None,
    client_cert_auth: Annotated[bool, _flag("client-cert-auth", "require client certificates; their common names are user names")] = False,
    auth_token: Annotated[str, _flag("auth-token", "simple, or jwt,sign-method=...,pub-key=...,priv-key=...,ttl=...")] = "simple",
    auth_token_ttl: Annotated[int, _flag("auth-token-ttl", "seconds that a token is good for")] = 300,
    watch_progress_notify_interval: Annotated[str, _flag("watch-progress-notify-interval", "between progress notifications of idle watches")] = "10m",
    skip_hash_check: Annotated[bool, typer.Option(help="with snapshot restore: FILE is a copy of a database, without a checksum")] = False,
    unsafe_no_fsync: Annotated[bool, _flag("unsafe-no-fsync", "do not wait for the disk: a crash of the machine may lose writes")] = False,
) -> None:
    """Run the store behind etcd's v3 API until SIGINT or SIGTERM; or restore a snapshot."""
    directory = data_dir or Path(f"{name}.etcd")
    if action:
        if action[:2] != ["snapshot", "restore"] or len(action) != 3:
            fail(f'"{" ".join(action)}": the one action there is, is snapshot restore FILE')
        _restore(Path(action[2]), directory, skip_hash_check)
        return
    if initial_cluster_state != "new" or len(_urls(initial_cluster)) > 1:
        fail("this is a cluster of one member; for several, run etcd itself and point the API servers at it")
    if (cert_file is None) != (key_file is None):
        fail("--cert-file and --key-file must be given together")
    if client_cert_auth and trusted_ca_file is None:
        fail("--client-cert-auth needs --trusted-ca-file")
    kept_seconds, kept_revisions = history(auto_compaction_mode, auto_compaction_retention)
    tls = Tls(cert_file, key_file, trusted_ca_file, client_cert_auth) if cert_file is not None and key_file is not None else None
    quota = QUOTA_BYTES_DEFAULT if quota_backend_bytes == 0 else max(quota_backend_bytes, 0)
    options = Options(
        name=name, client_urls=_urls(advertise_client_urls or listen_client_urls), peer_urls=_urls(initial_advertise_peer_urls), quota_bytes=quota,
        txn_ops_max=max_txn_ops, request_bytes_max=max_request_bytes, progress_seconds=seconds(watch_progress_notify_interval, "--watch-progress-notify-interval"),
        auth_token=auth_token, auth_token_ttl_seconds=auth_token_ttl, client_cert_auth=client_cert_auth,
    )  # fmt: skip

    async def run(stop: asyncio.Event) -> None:
        store = EmbeddedStore(directory, fsync=not unsafe_no_fsync, history_seconds=kept_seconds, history_bytes=FOREVER_BYTES, quota_bytes=FOREVER_BYTES)
        await store.start()
        async with contextlib.AsyncExitStack() as stack, Supervisor("etcd") as supervisor:
            stack.push_async_callback(store.close)
            server = EtcdServer(store, options, directory / DATA_DIR_STATE)
            stack.push_async_callback(server.close)
            await server.listen(_urls(listen_client_urls), tls)
            await server.listen(_urls(listen_client_http_urls) + _urls(listen_metrics_urls), tls, pages_only=True)
            if kept_revisions:
                supervisor.start("auto-compaction", lambda: auto_compact(store, kept_revisions, AUTO_COMPACTION_SECONDS))
            await stop.wait()

    serve("etcd", run, (StoreError, ListenError, ValueError, OSError))
