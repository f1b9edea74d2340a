"""What people do with etcdctl: rows S1 to S8 of the project's behaviours, against ours; where it matters, the same text from a real etcd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from fastkube.runtime.pki import Pki

SECONDS_MAX = 30.0


class Following:
    """An etcdctl that runs until it is told to stop; its lines."""

    def __init__(self, server, *args: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            ["etcdctl", f"--endpoints={server.url}", *args], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env={**os.environ, "ETCDCTL_API": "3"}
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        self.lines.extend(line.rstrip("\n") for line in self.process.stdout)

    def until(self, good, what: str) -> list[str]:
        deadline = time.monotonic() + SECONDS_MAX
        while not good(self.lines):
            assert time.monotonic() < deadline, f"{what}: {self.lines}"
            time.sleep(0.02)
        return list(self.lines)

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


SCRIPT = [
    ("put", "k/1", "one"), ("put", "k/2", "two"), ("put", "k/3", "three"), ("put", "k/2", "zwei", "--prev-kv"), ("get", "k/2"), ("get", "k/", "--prefix"),
    ("get", "k/", "--prefix", "--keys-only"), ("get", "/", "--prefix", "--keys-only"), ("get", "k/1", "k/3"), ("get", "k/2", "--rev=3"), ("get", "k/", "--prefix", "--limit=2"),
    ("get", "k/", "--prefix", "--sort-by=MODIFY", "--order=DESCEND"), ("get", "k/", "--prefix", "--sort-by=VALUE", "--print-value-only"), ("get", "k/2", "--from-key"),
    ("get", "k/2", "-w", "json"), ("get", "k/2", "-w", "fields"), ("get", "k/2", "--rev=99"), ("put", "k/9", "--ignore-value"),
    ("put", "k/1", "--ignore-value"), ("put", "x", "y", "--lease=123"), ("del", "k/1", "--prev-kv"), ("del", "k/", "--prefix", "--prev-kv"), ("del", "nothing"),
    ("compaction", "5"), ("compaction", "5"), ("get", "k/2", "--rev=3"), ("compaction", "999"), ("lease", "revoke", "abc"), ("lease", "timetolive", "abc"), ("lease", "list"),
    ("role", "add", "r"), ("role", "grant-permission", "r", "readwrite", "k/", "--prefix=true"), ("role", "get", "r"), ("role", "list"), ("user", "add", "u:pw"),
    ("user", "grant-role", "u", "r"), ("user", "get", "u"), ("user", "list"), ("user", "revoke-role", "u", "r"), ("user", "delete", "u"), ("role", "delete", "r"), ("alarm", "list"), ("alarm", "disarm"),
]  # fmt: skip


def same_by_nature(text: str) -> str:
    """Ids, terms and the time of day differ."""
    lines = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("{") and '"header"' in line:
            found = json.loads(line)
            for name in ("cluster_id", "member_id", "raft_term"):
                found["header"].pop(name, None)
            line = json.dumps(found, sort_keys=True)
        if line.startswith('{"level"'):
            line = json.loads(line)["error"]
        if not any(name in line for name in ('"ClusterID"', '"MemberID"', '"RaftTerm"')):
            lines.append(line)
    return "\n".join(lines)


def test_the_same_text_as_with_etcd(launch) -> None:
    ours, theirs = launch("ours"), launch("etcd")
    for args in SCRIPT:
        said = [same_by_nature(server.ctl(*args, check=False)) for server in (ours, theirs)]
        assert said[0] == said[1], f"etcdctl {' '.join(args)}"


def test_transactions(ours, theirs) -> None:
    text = 'version("t/1") = "0"\n\nput t/1 first\nput t/2 second\n\nget t/1\n\n'
    for server in (ours, theirs):
        assert server.ctl("txn", stdin=text).split() == ["SUCCESS", "OK", "OK"]
        assert server.ctl("txn", stdin=text).split() == ["FAILURE", "t/1", "first"]
        said = server.ctl("txn", stdin='value("t/1") = "first"\nmod("t/2") > "1"\ncreate("t/2") > "0"\n\ndel t/1\nget t/1\n\n\n')
        assert said.split() == ["SUCCESS", "1"], said


def test_watches(ours) -> None:
    ours.ctl("put", "w/1", "a")
    revision = json.loads(ours.ctl("get", "w/1", "-w", "json"))["header"]["revision"]
    one, prefix = Following(ours, "watch", "w/1", "--prev-kv", f"--rev={revision}"), Following(ours, "watch", "--prefix", "w/", f"--rev={revision}")
    ours.ctl("put", "w/1", "b")
    ours.ctl("put", "w/2", "c")
    ours.ctl("del", "w/1")
    try:
        said = one.until(lambda lines: lines.count("DELETE") == 1 and len(lines) >= 13, "watch of a key")
        assert said == ["PUT", "", "", "w/1", "a", "PUT", "w/1", "a", "w/1", "b", "DELETE", "w/1", "b", "w/1", ""][: len(said)] or said[:3] == [
            "PUT",
            "w/1",
            "a",
        ]
        said = prefix.until(lambda lines: lines.count("DELETE") == 1 and len(lines) >= 11, "watch of a prefix")
        assert said[:11] == ["PUT", "w/1", "a", "PUT", "w/1", "b", "PUT", "w/2", "c", "DELETE", "w/1"]
    finally:
        one.end()
        prefix.end()


def test_watch_from_a_compacted_revision(ours) -> None:
    for i in range(3):
        ours.ctl("put", "wc", str(i))
    revision = json.loads(ours.ctl("get", "wc", "-w", "json"))["header"]["revision"]
    ours.ctl("compaction", str(revision))
    said = ours.ctl("watch", "wc", f"--rev={revision - 1}", check=False)
    assert "required revision has been compacted" in said


def test_leases(launch) -> None:
    server = launch("ours")
    lease = server.ctl("lease", "grant", "2").split()[1]
    server.ctl("put", "l/short", "x", f"--lease={lease}")
    kept = server.ctl("lease", "grant", "300").split()[1]
    server.ctl("put", "l/kept", "y", f"--lease={kept}")
    assert "granted with TTL(300s)" in server.ctl("lease", "timetolive", kept) and "l/kept" in server.ctl("lease", "timetolive", kept, "--keys")
    assert "keepalived with TTL(300)" in server.ctl("lease", "keep-alive", kept, "--once")
    deadline = time.monotonic() + SECONDS_MAX
    while server.ctl("get", "l/short"):
        assert time.monotonic() < deadline, "the lease did not expire"
        time.sleep(0.1)
    server.kill()
    server.start()
    server.wait()
    assert kept in server.ctl("lease", "list") and lease not in server.ctl("lease", "list")
    server.ctl("lease", "revoke", kept)
    assert server.ctl("get", "l/", "--prefix") == ""


def test_lock_and_election(ours) -> None:
    first = Following(ours, "lock", "the-lock")
    held = first.until(lambda lines: len(lines) >= 1, "first lock")[0]
    second = Following(ours, "lock", "the-lock")
    time.sleep(0.5)
    assert second.lines == [] and held.startswith("the-lock/")
    first.end()
    second.until(lambda lines: len(lines) >= 1, "second lock")
    second.end()
    leader = Following(ours, "elect", "e", "one")
    leader.until(lambda lines: lines[1:2] == ["one"], "campaign")
    other = Following(ours, "elect", "e", "two")
    listener = Following(ours, "elect", "-l", "e")
    listener.until(lambda lines: lines[1:2] == ["one"], "observe")
    leader.end()
    other.until(lambda lines: lines[1:2] == ["two"], "second campaign")
    listener.until(lambda lines: lines[3:4] == ["two"], "observe the next")
    other.end()
    listener.end()


def test_auth(launch) -> None:
    server = launch("ours")
    for args in (
        ("role", "add", "root"), ("user", "add", "root:secret"), ("user", "grant-role", "root", "root"), ("user", "add", "app:pw"), ("role", "add", "app"),
        ("role", "grant-permission", "app", "readwrite", "app/", "--prefix=true"), ("role", "grant-permission", "app", "read", "shared"), ("user", "grant-role", "app", "app"),
        ("put", "shared", "s"), ("put", "other", "o"), ("auth", "enable"),
    ):  # fmt: skip
        server.ctl(*args)
    app, root = ("--user=app:pw",), ("--user=root:secret",)
    assert server.ctl("put", "app/1", "x", flags=app) == "OK\n" and server.ctl("get", "shared", flags=app) == "shared\ns\n"
    assert "permission denied" in server.ctl("put", "shared", "x", flags=app, check=False)
    assert "permission denied" in server.ctl("get", "other", flags=app, check=False)
    assert "permission denied" in server.ctl("get", "", "--prefix", flags=app, check=False)
    assert "permission denied" in server.ctl("user", "list", flags=app, check=False)
    assert "user name is empty" in server.ctl("get", "other", check=False)
    assert "authentication failed" in server.ctl("get", "other", flags=("--user=app:wrong",), check=False)
    assert server.ctl("user", "list", flags=root).split() == ["app", "root"]
    server.kill()
    server.start()
    server.wait()
    assert "user name is empty" in server.ctl("get", "other", check=False) and server.ctl("get", "other", flags=root) == "other\no\n"
    assert server.ctl("auth", "disable", flags=root) == "Authentication Disabled\n" and server.ctl("get", "other") == "other\no\n"


def test_client_certificates(launch, tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    serving, client = pki.apiserver(["127.0.0.1"]), pki.client("admin")
    flags = [f"--cert-file={serving.cert}", f"--key-file={serving.key}", f"--trusted-ca-file={pki.ca.cert}", "--client-cert-auth"]
    server = launch("ours", *flags, scheme="https")
    with_cert = (f"--cacert={pki.ca.cert}", f"--cert={client.cert}", f"--key={client.key}")
    assert server.ctl("put", "a", "1", flags=with_cert) == "OK\n"
    assert "Error" in server.ctl("get", "a", flags=(f"--cacert={pki.ca.cert}", "--command-timeout=2s"), check=False)


def test_space_quota_raises_an_alarm_that_stands(launch) -> None:
    server = launch("ours", f"--quota-backend-bytes={64 << 10}")
    value = "x" * 8192
    said = [server.ctl("put", f"q/{i}", value, check=False) for i in range(10)]
    assert "OK" in said[0] and "database space exceeded" in said[-1]
    assert "alarm:NOSPACE" in server.ctl("alarm", "list")
    assert "q/0" in server.ctl("get", "q/0") and "database space exceeded" in server.ctl("put", "small", "1", check=False)
    server.kill()
    server.start()
    server.wait()
    assert "alarm:NOSPACE" in server.ctl("alarm", "list") and "database space exceeded" in server.ctl("put", "small", "1", check=False)
    server.ctl("del", "q/", "--prefix")
    revision = json.loads(server.ctl("get", "q/0", "-w", "json"))["header"]["revision"]
    server.ctl("compaction", str(revision), "--physical")
    server.ctl("defrag")
    assert "alarm:NOSPACE" in server.ctl("alarm", "disarm") and server.ctl("put", "small", "1") == "OK\n"


def test_maintenance_and_members(ours) -> None:
    assert "is healthy" in ours.ctl("endpoint", "health", check=False)
    status = json.loads(ours.ctl("endpoint", "status", "-w", "json"))[0]["Status"]
    assert status["leader"] == status["header"]["member_id"] and status["version"].startswith("3.")
    member = f"{status['leader']:x}"
    assert ours.ctl("member", "list").startswith(f"{member}, started, default,")
    assert "Finished defragmenting" in ours.ctl("defrag")
    assert ours.ctl("endpoint", "hashkv").count(",") == 1
    assert "re-configuration failed" in ours.ctl("member", "remove", member, check=False)
    assert "member not found" in ours.ctl("member", "remove", "1", check=False)
    assert "unhealthy cluster" in ours.ctl("member", "add", "x", "--peer-urls=http://127.0.0.1:1", check=False)
    with urllib.request.urlopen(f"{ours.http}/health", timeout=5) as answer:
        assert json.load(answer)["health"] == "true"
    with urllib.request.urlopen(f"{ours.http}/version", timeout=5) as answer:
        assert json.load(answer)["etcdserver"].startswith("3.")
    with urllib.request.urlopen(f"{ours.http}/metrics", timeout=5) as answer:
        assert b"etcd_server_has_leader 1" in answer.read()


def test_make_mirror(ours, theirs) -> None:
    """Both ways, so that nobody is locked in."""
    ours.ctl("put", "mirror/a", "1")
    theirs.ctl("put", "back/a", "2")
    to, back = Following(ours, "make-mirror", theirs.address, "--prefix=mirror/"), Following(theirs, "make-mirror", ours.address, "--prefix=back/")
    deadline = time.monotonic() + SECONDS_MAX
    while theirs.ctl("get", "mirror/a") != "mirror/a\n1\n" or ours.ctl("get", "back/a") != "back/a\n2\n":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ours.ctl("put", "mirror/b", "3")
    while theirs.ctl("get", "mirror/b") != "mirror/b\n3\n":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    to.end()
    back.end()


def test_a_snapshot_that_a_real_etcd_restores(launch, tmp_path: Path) -> None:
    server = launch("ours")
    for i in range(300):
        server.client().Put(key=b"s/%03d" % i, value=os.urandom(50)) if i % 50 == 0 else None
    client = server.client()
    for i in range(300):
        client.Put(key=b"s/%03d" % i, value=b"v%d" % i * (i % 7 * 300))
    client.Put(key=b"s/000", value=b"again")
    client.Compact(revision=client.Range(key=b"x").header.revision - 5)
    client.Put(key=b"gone", value=b"1")
    client.DeleteRange(key=b"gone")
    file = tmp_path / "ours.db"
    server.ctl("snapshot", "save", str(file))
    revision = client.Range(key=b"x").header.revision
    status = json.loads(server.ctl("snapshot", "status", str(file), "-w", "json"))
    assert status["revision"] == revision
    data = tmp_path / "restored"
    server.ctl("snapshot", "restore", str(file), f"--data-dir={data}")
    real = launch("etcd", f"--data-dir={data}")
    assert len(real.ctl("get", "s/", "--prefix", "--keys-only").split()) == 300
    restored, mine = real.client().Range(key=b"\0", range_end=b"\0"), client.Range(key=b"\0", range_end=b"\0")
    assert list(restored.kvs) == list(mine.kvs) and restored.header.revision == revision


@pytest.mark.parametrize(
    "bad",
    [
        ["--client-cert-auth"],
        ["--cert-file=x"],
        ["--auth-token=magic"],
        ["--initial-cluster-state=existing"],
        ["--auto-compaction-mode=never"],
        ["--no-such-flag"],
    ],
)
def test_bad_flags_are_refused(bad: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["python", "-m", "fastkube", "etcd", f"--data-dir={tmp_path / 'd'}", *bad],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode in (1, 2) and ("error" in done.stderr.lower())
