"""An API server of its own as a process on plain loopback HTTP (optionally inside a network namespace), and parts beside it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_SECONDS_MAX = 30.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class ApiProcess:
    """`enter`: what goes before a command to run it in a namespace, e.g. ("ip", "netns", "exec", NS)."""

    def __init__(self, directory: Path, enter: tuple[str, ...] = ()) -> None:
        self.enter, self.directory, self.port = enter, directory, free_port()
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test"}}],
                    "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                }
            )
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("apiserver", f"--secure-port={self.port}", "--bind-address=127.0.0.1", "--authorization-mode=AlwaysAllow")
        self.wait(lambda: self.log("apiserver").count('"serving"'))
        self.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})

    def start(self, part: str, *arguments: str, name: str = "") -> subprocess.Popen[bytes]:
        """Run `fastkube PART ARGUMENTS`; its log is kept under `name`."""
        argv = [*self.enter, sys.executable, "-m", "fastkube", part, *arguments]
        with open(self.directory / f"{name or part}.log", "ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"FASTKUBE_LOG_LEVEL": "debug"})
        self.processes[name or part] = process
        return process

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(20)

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, condition: Any, seconds: float = START_SECONDS_MAX) -> Any:
        """Until `condition()` is true; its value."""
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            logs = {name: self.log(name)[-3000:] for name in self.processes}
            assert not dead and time.monotonic() < deadline, f"it did not come about; dead: {dead}; logs: {logs}"
            time.sleep(0.02)

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        argv = [*self.enter, "curl", "-sS", "-X", method, "-H", f"Content-Type: {content_type}", f"http://127.0.0.1:{self.port}{path}"]
        if body is not None:
            argv += ["--data-binary", "@-"]
        done = subprocess.run(argv, input=json.dumps(body) if body is not None else "", capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert answer.get("status") != "Failure", answer
        return answer

    def create(self, path: str, obj: Any) -> Any:
        return self.request("POST", path, obj)

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name)
