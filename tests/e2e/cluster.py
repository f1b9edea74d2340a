"""A real cluster for tests: `fastkube up` with containerd in a network namespace of its own that has no default route."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FASTKUBE = [sys.executable, "-m", "fastkube"]
READY_SECONDS_MAX = 120


def wait_for(what: str, condition, seconds: float = 60.0) -> Any:
    """Poll until `condition()` gives something true; AssertionError naming `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if last:
                return last
        except (AssertionError, subprocess.CalledProcessError, KeyError, IndexError) as error:
            last = getattr(error, "stderr", None) or error
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:.0f} s; last: {last}")


class Namespace:
    """A network namespace with nothing but loopback."""

    def __init__(self, name: str) -> None:
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.enter = ["nsenter", f"--net=/run/netns/{name}"]
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.enter, *argv], check=more.pop("check", True), capture_output=True, text=True, timeout=more.pop("timeout", 60), **more)

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


class Cluster:
    """`fastkube up` as a user runs it, and kubectl beside it."""

    def __init__(self, data_dir: Path, namespace: Namespace, *arguments: str, kubectl: str = "kubectl") -> None:
        self.data_dir = data_dir
        self.namespace = namespace
        self.arguments = arguments
        self.kubectl_binary = shutil.which(kubectl) or kubectl
        self.process: subprocess.Popen[str] | None = None
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.environment = {**os.environ, "KUBECONFIG": str(data_dir / "admin.kubeconfig"), "KUBE_EDITOR": "", "HOME": str(data_dir.parent)}

    def start(self) -> str:
        """Start and wait for the line that says ready -> the line."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.namespace.enter, *FASTKUBE, "up", "--data-dir", str(self.data_dir), *self.arguments], stdout=subprocess.PIPE, stderr=log, text=True
            )
        timer = time.monotonic()
        import select

        while not select.select([self.process.stdout], [], [], 0.5)[0]:
            assert time.monotonic() - timer < READY_SECONDS_MAX, f"not ready in time:\n{self.log_tail()}"
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait()}:\n{self.log_tail()}"
        return line

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End `fastkube up` -> its exit code. Containers keep running."""
        assert self.process
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process.stdout.close()
        self.process = None
        return code

    def down(self) -> None:
        if self.process and self.process.poll() is None:
            self.stop()
        subprocess.run([*self.namespace.enter, *FASTKUBE, "down", "--data-dir", str(self.data_dir), "--purge"], check=True, timeout=120)

    def kubectl(self, *argv: str, stdin: str | None = None, check: bool = True, timeout: float = 60, env: dict[str, str] | None = None) -> str:
        """Run kubectl -> its stdout; CalledProcessError (with stderr) on failure."""
        done = subprocess.run(
            [*self.namespace.enter, self.kubectl_binary, *argv],
            input=stdin, capture_output=True, text=True, timeout=timeout, env={**self.environment, **(env or {})},
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def popen(self, *argv: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.namespace.enter, self.kubectl_binary, *argv],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**self.environment, **more.pop("env", {})}, **more,
        )  # fmt: skip

    def get(self, *argv: str) -> Any:
        return json.loads(self.kubectl("get", *argv, "-o", "json"))

    def curl(self, url: str, *argv: str) -> str:
        return self.namespace.run("curl", "-sS", "-m", "5", *argv, url).stdout

    def node_directory(self) -> Path:
        return next((self.data_dir / "nodes").iterdir())

    def import_images(self, *names: str) -> None:
        script = (
            "import asyncio, sys; from pathlib import Path; from fastkube.node import images; from fastkube.node.containerd import Containerd; "
            "asyncio.run(images.import_archives(Containerd(Path(sys.argv[1])).endpoint, images.build(sys.argv[3:], Path(sys.argv[2]))))"
        )
        subprocess.run([sys.executable, "-c", script, str(self.node_directory()), str(self.data_dir / "images"), *names], check=True, timeout=120)
