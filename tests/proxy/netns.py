"""A small world of network namespaces: one node, its pods, one client outside. No default route anywhere.

    outside 192.0.2.1 --- 192.0.2.2 node 10.244.0.1 --- pods 10.244.0.x

Pods are attached as CNI's ptp plugin does it: a veth pair and a host route each. Each pod runs one process that answers TCP and UDP with its name and the address it sees its peer under.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
import socket, sys, threading
name, port = sys.argv[1], int(sys.argv[2])
def tcp():
    s = socket.create_server(("0.0.0.0", port)); print("up", flush=True)
    while True:
        c, peer = s.accept(); c.sendall(f"{name} {peer[0]}".encode()); c.close()
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", port))
    while True:
        data, peer = s.recvfrom(2048); s.sendto(f"{name} {peer[0]}".encode(), peer)
threading.Thread(target=udp, daemon=True).start(); tcp()
"""

CLIENT = """
import socket, sys
proto, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for _ in range(count):
    try:
        if proto == "tcp":
            s = socket.create_connection((host, port), 2); print(s.recv(200).decode()); s.close()
        else:
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
            if len(sys.argv) > 5: s.bind(("0.0.0.0", int(sys.argv[5])))
            s.connect((host, port)); s.send(b"?"); print(s.recv(200).decode()); s.close()
    except OSError as e:
        print(type(e).__name__)
"""


def run(*argv: str, input: str | None = None) -> str:
    done = subprocess.run(argv, input=input, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


GATEWAY = "10.244.0.1"


class World:
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.namespaces: list[str] = []
        self.servers: list[subprocess.Popen[str]] = []
        self.pods: dict[str, str] = {}
        self.node, self.outside = self.add("node"), self.add("out")
        run("ip", "link", "add", "eth0", "netns", self.node, "type", "veth", "peer", "name", "eth0", "netns", self.outside)
        self.ip(self.node, "addr add 192.0.2.2/24 dev eth0")
        self.ip(self.outside, "addr add 192.0.2.1/24 dev eth0")
        self.ip(self.node, "link set eth0 up")
        self.ip(self.outside, "link set eth0 up")
        # The outside knows the way to load balancer and external addresses, but not to pods: replies must come from the node.
        self.ip(self.outside, "route add 198.51.100.0/24 via 192.0.2.2")
        self.ip(self.outside, "route add 10.96.0.0/12 via 192.0.2.2")
        for cidr in ("10.244.0.0/16", "10.96.0.0/12"):
            self.ip(self.node, f"route add unreachable {cidr}")
        # A hairpin makes the kernel send redirects, which use up the same allowance as the refusals that tests wait for.
        redirects = [f"net.ipv4.conf.{device}.send_redirects=0" for device in ("all", "default")]
        self.exec(self.node, "sysctl", "-qw", "net.ipv4.ip_forward=1", *redirects)

    def add(self, name: str) -> str:
        ns = f"{self.prefix}-{name}"
        run("ip", "netns", "add", ns)
        self.namespaces.append(ns)
        self.ip(ns, "link set lo up")
        return ns

    def ip(self, ns: str, command: str) -> str:
        return run("ip", "-n", ns, *command.split())

    def exec(self, ns: str, *argv: str, input: str | None = None) -> str:
        return run("ip", "netns", "exec", ns, *argv, input=input)

    def pod(self, name: str, address: str, port: int = 8080) -> str:
        """A namespace with a server; returns its name."""
        ns, device = self.add(name), f"v{name}"
        run("ip", "link", "add", "eth0", "netns", ns, "type", "veth", "peer", "name", device, "netns", self.node)
        self.ip(self.node, f"addr add {GATEWAY}/32 dev {device}")
        self.ip(self.node, f"link set {device} up")
        self.ip(self.node, f"route add {address}/32 dev {device}")
        self.ip(ns, f"addr add {address}/32 dev eth0")
        self.ip(ns, "link set eth0 up")
        self.ip(ns, f"route add {GATEWAY}/32 dev eth0 scope link src {address}")
        for cidr in ("10.244.0.0/16", "10.96.0.0/12", "192.0.2.0/24", "198.51.100.0/24"):
            self.ip(ns, f"route add {cidr} via {GATEWAY} src {address}")
        self.serve(ns, name, port)
        return ns

    def serve(self, ns: str, name: str, port: int) -> None:
        server = subprocess.Popen(["ip", "netns", "exec", ns, sys.executable, "-c", SERVER, name, str(port)], stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout and server.stdout.readline() == "up\n"

    def ask(self, ns: str, host: str, port: int, proto: str = "tcp", count: int = 1, source_port: int = 0) -> list[str]:
        """Answers ("NAME PEER") or the names of errors (ConnectionRefusedError, TimeoutError), one per connection."""
        more = [str(source_port)] if source_port else []
        return self.exec(ns, sys.executable, "-c", CLIENT, proto, host, str(port), str(count), *more).split("\n")[:-1]

    def close(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait()
        for ns in self.namespaces:
            run("ip", "netns", "del", ns)


def require() -> None:
    """Skip where namespaces cannot be made; on CI's machine, where nothing may be skipped, fail."""
    if not possible():
        skip("network namespaces need root and nft")


def skip(reason: str) -> None:
    (pytest.fail if os.environ.get("FASTKUBE_TESTS_ALL") else pytest.skip)(reason)


def possible() -> bool:
    return os.geteuid() == 0 and Path("/usr/sbin/nft").exists()
