"""etcd's HTTP side: /health, /livez, /readyz, /version, /metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastkube.store.etcd.member import CLUSTER_VERSION, NOSPACE, VERSION

if TYPE_CHECKING:
    from fastkube.store.etcd.server import EtcdServer

Answer = tuple[int, str, str]  # status, content type, body


class Pages:
    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._paths: dict[str, Callable[[], Answer]] = {
            "/health": self._health,
            "/livez": lambda: (200, "text/plain", "ok\n"),
            "/readyz": lambda: (200, "text/plain", "ok\n") if self._server.member.store.failure is None else (503, "text/plain", "not ready\n"),
            "/version": lambda: (200, "application/json", json.dumps({"etcdserver": VERSION, "etcdcluster": CLUSTER_VERSION})),
            "/metrics": lambda: (200, "text/plain; version=0.0.4; charset=utf-8", metrics(self._server)),
        }

    def answer(self, method: str, target: str) -> Answer:
        answer = self._paths.get(target.partition("?")[0])
        if answer is None:
            return 404, "text/plain", "404 page not found\n"
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", "Method Not Allowed\n"
        return answer()

    def _health(self) -> Answer:
        member = self._server.member
        if member.store.failure is not None:
            return 503, "application/json", json.dumps({"health": "false", "reason": str(member.store.failure)})
        if any(alarm == NOSPACE for _, alarm in member.state.alarms):
            return 503, "application/json", json.dumps({"health": "false", "reason": "ALARM NOSPACE"})
        return 200, "application/json", json.dumps({"health": "true", "reason": ""})


def metrics(server: EtcdServer) -> str:
    """etcd's names, as far as one process has what they count."""
    member = server.member
    store = member.store
    gauges = [
        ("etcd_server_has_leader", "Whether or not a leader exists.", 0 if store.failure else 1),
        ("etcd_server_is_leader", "Whether or not this member is a leader.", 1),
        ("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", member.options.quota_bytes),
        ("etcd_mvcc_db_total_size_in_bytes", "Bytes of all versions in memory.", store.size),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of all versions in memory.", store.size),
        ("etcd_debugging_mvcc_keys_total", "Total number of keys.", store.count(b"\0", b"\0")),
        ("etcd_debugging_mvcc_current_revision", "The current revision of the store.", store.revision),
        ("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in the store.", store.compacted),
        ("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", server.watch.streams),
        ("etcd_debugging_lease_total", "Number of leases.", len(store.leases())),
    ]
    lines = []
    for name, text, value in gauges:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value}"]
    lines += [
        "# HELP etcd_server_version Which version is running.",
        "# TYPE etcd_server_version gauge",
        f'etcd_server_version{{server_version="{VERSION}"}} 1',
    ]
    name = "grpc_server_handled_total"
    lines += [f"# HELP {name} Total number of RPCs completed on the server, regardless of success or failure.", f"# TYPE {name} counter"]
    for (path, code), count in sorted(server.counts.items()):
        _, service, method = path.split("/")
        lines.append(f'{name}{{grpc_code="{_go_code(code)}",grpc_method="{method}",grpc_service="{service}"}} {count}')
    return "\n".join(lines) + "\n"


def _go_code(code: str) -> str:
    """INVALID_ARGUMENT -> InvalidArgument, as grpc-go calls it."""
    return "OK" if code == "OK" else code.title().replace("_", "")
