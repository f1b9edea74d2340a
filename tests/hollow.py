"""`fastkube up --runtime hollow` as a subprocess, for tests that need a whole control plane but no containers and no root."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

START_SECONDS_MAX = 60


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class HollowCluster:
    def __init__(self, data_dir: Path, nodes: int = 2, *arguments: str) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.kubeconfig = data_dir / "admin.kubeconfig"
        self.log = data_dir.with_suffix(".log")
        self.arguments = ["up", "--runtime", "hollow", f"--nodes={nodes}", f"--data-dir={data_dir}", f"--secure-port={self.port}", *arguments]
        self.environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(data_dir.parent)}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "fastkube", *self.arguments], stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout
        ready = select.select([self.process.stdout], [], [], START_SECONDS_MAX)[0]
        line = self.process.stdout.readline() if ready else ""
        assert line, f"not ready:\n{self.log.read_text()[-4000:]}"
        return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(number)
        code = self.process.wait(30)
        if self.process.stdout:
            self.process.stdout.close()
        self.process = None
        return code

    def kubectl(self, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(["kubectl", *argv], input=stdin, capture_output=True, text=True, timeout=60, env=self.environment)
        assert not check or not done.returncode, f"kubectl {' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr
