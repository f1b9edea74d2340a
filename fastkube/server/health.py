"""/livez, /readyz, /healthz and their individual checks, in upstream's text form (k8s.io/apiserver/pkg/server/healthz)."""

from __future__ import annotations

from collections.abc import Callable

from fastkube.http.message import Request, Response

Check = Callable[[], str]  # "" when well, else what is wrong


class Health:
    """`checks` by name; `ready_only` ones do not concern /livez and /healthz."""

    def __init__(self) -> None:
        self.checks: dict[str, Check] = {"ping": lambda: "", "log": lambda: ""}
        self.ready_only: dict[str, Check] = {}

    def _of(self, kind: str) -> dict[str, Check]:
        return {**self.checks, **self.ready_only} if kind == "readyz" else self.checks

    def answer(self, request: Request) -> Response:
        """`/readyz`, `/readyz/CHECK`; ?verbose lists all, ?exclude=CHECK leaves one out."""
        kind, _, name = request.path.strip("/").partition("/")
        checks = self._of(kind)
        if name:
            if name not in checks:
                return _text(404, "404 page not found\n")
            problem = checks[name]()
            return _text(200, "ok") if not problem else _text(500, f"internal server error: {problem}\n")
        excluded = set(request.params("exclude"))
        lines, failed = [], []
        for check, ask in checks.items():
            if check in excluded:
                lines.append(f"[+]{check} excluded: ok\n")
                continue
            problem = ask()
            if problem:
                failed.append(check)
                lines.append(f"[-]{check} failed: reason withheld\n")
            else:
                lines.append(f"[+]{check} ok\n")
        if unknown := excluded - checks.keys():
            lines.append(f"warn: some health checks cannot be excluded: no matches for {', '.join(sorted(unknown))}\n")
        if failed:
            return _text(500, "".join(lines) + f"{kind} check failed\n")
        if any(key == "verbose" for key, _ in request.query):
            return _text(200, "".join(lines) + f"{kind} check passed\n")
        return _text(200, "ok")


def _text(status: int, text: str) -> Response:
    return Response(status, text.encode(), "text/plain; charset=utf-8", (("X-Content-Type-Options", "nosniff"),))
