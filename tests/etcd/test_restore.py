"""Snapshots of a real etcd and of ours become a data directory of ours."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from fastkube.store.etcd import messages as m
from tests.etcd.conftest import ROOT


def restored(launch, file: Path, data: Path, *flags: str):
    done = subprocess.run(
        [sys.executable, "-m", "fastkube", "etcd", "snapshot", "restore", str(file), f"--data-dir={data}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return launch("ours", f"--data-dir={data}")


@pytest.mark.parametrize("which", ["etcd", "ours"])
def test_the_same_stands_there(launch, tmp_path: Path, which: str) -> None:
    source = launch(which)
    client, r = source.client(), random.Random(7)
    lease = client.LeaseGrant(TTL=3600, ID=99).ID
    for _ in range(1500):
        key = b"k/%d" % r.randint(0, 400)
        if r.random() < 0.8:
            client.Put(key=key, value=bytes([r.randint(0, 255)]) * r.choice([0, 10, 300, 5000]), lease=r.choice([0, 0, lease]))
        else:
            client.DeleteRange(key=key)
    client.RoleAdd(name="reader")
    client.RoleGrantPermission(name="reader", perm=m.Permission(permType=0, key=b"a", range_end=b"b"))
    client.UserAdd(name="someone", password="pw")
    client.UserGrantRole(user="someone", role="reader")
    client.Put(key=b"last")
    client.DeleteRange(key=b"last")
    file = tmp_path / "file.db"
    source.ctl("snapshot", "save", str(file))
    again = restored(launch, file, tmp_path / "data").client()
    before, after = (c.Range(key=b"\0", range_end=b"\0") for c in (client, again))
    assert list(after.kvs) == list(before.kvs) and after.header.revision == before.header.revision
    assert sorted(again.LeaseTimeToLive(ID=99, keys=True).keys) == sorted(client.LeaseTimeToLive(ID=99, keys=True).keys)
    assert list(again.UserGet(name="someone").roles) == ["reader"] and again.RoleGet(role="reader").perm == client.RoleGet(role="reader").perm
    assert again.Put(key=b"next").header.revision == before.header.revision + 1


def test_damaged_snapshots_are_refused(launch, tmp_path: Path) -> None:
    source = launch("ours")
    for i in range(200):
        source.client().Put(key=b"%d" % i, value=b"x" * 100) if i % 20 == 0 else None
    file = tmp_path / "file.db"
    source.ctl("snapshot", "save", str(file))
    whole = file.read_bytes()
    r = random.Random(3)
    from fastkube.store.etcd.bolt import BoltError, Reader

    for at in [r.randrange(len(whole)) for _ in range(300)]:  # the checksum finds all; the reader itself must not crash either
        try:
            reader = Reader(memoryview(whole[:at] + bytes([whole[at] ^ 1 << r.randrange(8)]) + whole[at + 1 : -32]))
            list(reader.bucket(b"key"))
        except BoltError:
            pass
    file.write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    done = subprocess.run(
        [sys.executable, "-m", "fastkube", "etcd", "snapshot", "restore", str(file), f"--data-dir={tmp_path / 'data'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "does not match its checksum" in done.stderr and not (tmp_path / "data").exists()
