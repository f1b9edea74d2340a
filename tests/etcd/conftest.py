"""A real etcd (Debian's 3.4) and ours, each as a process of its own, on free ports of loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from fastkube.store.etcd import messages

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 30.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Client:
    """Every method of etcd's API by its name, over one connection."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.token = ""
        self._calls = {}
        for service in messages.SERVICES:
            for method, request, response, requests, answers in messages.methods(service):
                kind = f"{'stream' if requests else 'unary'}_{'stream' if answers else 'unary'}"
                call = getattr(channel, kind)(f"/{service}/{method}", request.SerializeToString, response.FromString)
                self._calls[method] = call, request

    def __getattr__(self, method: str):
        call, request = self._calls[method]

        def invoke(message=None, **fields):
            metadata = (("token", self.token),) if self.token else ()
            return call(request(**fields) if message is None else message, metadata=metadata)

        return invoke


@dataclass
class Running:
    url: str
    directory: Path
    process: subprocess.Popen
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    http: str = ""

    @property
    def address(self) -> str:
        return self.url.split("//")[1]

    def client(self) -> Client:
        return Client(grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]))

    def ctl(self, *args: str, stdin: str = "", check: bool = True, timeout: float = 30.0, flags: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            ["etcdctl", f"--endpoints={self.url}", *flags, *args],
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        if check and done.returncode:
            raise AssertionError(f"etcdctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"{self.command} ended with {self.process.returncode}: {(self.directory.parent / 'log').read_text()[-2000:]}"
            with socket.socket() as s:
                host, port = self.address.rsplit(":", 1)
                if s.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"{self.command} does not listen")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(30)

    def start(self) -> None:
        log = open(self.directory.parent / "log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **self.environment})
        log.close()


def need(binary: str) -> str:
    found = shutil.which(binary)
    if found is None:
        pytest.fail(f"{binary} is not installed (Debian: apt-get install etcd-server etcd-client)")
    return found


@pytest.fixture(scope="session", autouse=True)
def _etcdctl() -> None:
    need("etcdctl")


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """launch("ours" or "etcd", *flags, scheme="http") -> what runs."""
    running: list[Running] = []

    def start(which: str, *flags: str, scheme: str = "http") -> Running:
        home = tmp_path_factory.mktemp(which)
        url, http = f"{scheme}://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        command = [need("etcd")] if which == "etcd" else [sys.executable, "-m", "fastkube", "etcd"]
        peers = f"http://127.0.0.1:{free_port()}"
        command += [f"--data-dir={home / 'data'}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-metrics-urls={http}"]
        if which == "etcd":
            command += [f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}", "--log-level=error"]
        command += flags
        one = Running(url, home / "data", None, command, {"ETCD_UNSUPPORTED_ARCH": "", "GRPC_VERBOSITY": "ERROR"}, http)  # type: ignore[arg-type]
        one.start()
        running.append(one)
        one.wait()
        return one

    yield start
    for one in running:
        if one.process.poll() is None:
            one.kill(signal.SIGTERM)


@pytest.fixture(scope="module")
def ours(launch: Callable[..., Running]) -> Running:
    return launch("ours", "--unsafe-no-fsync")


@pytest.fixture(scope="module")
def theirs(launch: Callable[..., Running]) -> Running:
    return launch("etcd")
