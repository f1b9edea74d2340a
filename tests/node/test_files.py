"""What the node writes to and reads from disk: atomic volumes, container logs, images, cgroups' arithmetic."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.node import cgroups, containerlogs, images
from fastkube.node.containerlogs import LogOptions
from fastkube.node.volumes import atomic
from fastkube.node.volumes.atomic import File

# --- atomic volumes ---


def read(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in directory.rglob("*")
        if p.is_file() and not any(part.startswith("..") for part in p.relative_to(directory).parts)
    }


def visible(directory: Path) -> dict[str, bytes]:
    out = {}
    for entry in os.scandir(directory):
        if not entry.name.startswith(".."):
            if entry.is_dir():
                out |= {f"{entry.name}/{k}": v for k, v in read(Path(os.path.realpath(entry.path))).items()}
            else:
                out[entry.name] = Path(entry.path).read_bytes()
    return out


names = st.sampled_from(["a", "b", "d/x", "d/y", "e/f/g"])
sets = st.lists(st.dictionaries(names, st.binary(max_size=8), max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(sets)
def test_volume_holds_exactly_its_files(tmp_path_factory, wanted):
    directory = tmp_path_factory.mktemp("v")
    for files in wanted:
        atomic.write(directory, {k: File(v) for k, v in files.items()})
        assert visible(directory) == files
        assert not atomic.write(directory, {k: File(v) for k, v in files.items()}), "unchanged is not written"
        assert sum(e.name.startswith("..2") for e in os.scandir(directory)) == 1


def _read_at(base: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=base), "rb") as f:
        return f.read()


def test_readers_never_see_a_mixture(tmp_path):
    atomic.write(tmp_path, {"a": File(b"0"), "b": File(b"0")})
    stop, mixtures = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                base = os.open(tmp_path / "..data", os.O_RDONLY | os.O_DIRECTORY)
                pair = {_read_at(base, name) for name in ("a", "b")}
                os.close(base)
                if len(pair) > 1:
                    mixtures.append(pair)
            except FileNotFoundError:
                pass  # the old directory went while we were in it

    thread = threading.Thread(target=look)
    thread.start()
    for i in range(200):
        atomic.write(tmp_path, {"a": File(b"%d" % i), "b": File(b"%d" % i)})
    stop.set()
    thread.join()
    assert not mixtures


def test_modes_and_changes_of_mode(tmp_path):
    atomic.write(tmp_path, {"a": File(b"x", 0o400)})
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o400
    assert atomic.write(tmp_path, {"a": File(b"x", 0o600)})
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("path", ["/x", "../x", "a/../x", "", "..x"])
def test_paths_that_leave_are_refused(tmp_path, path):
    with pytest.raises(atomic.BadPath):
        atomic.write(tmp_path / "v", {path: File(b"")})
    assert not (tmp_path / "v").exists()


# --- logs ---

STAMP = b"2026-11-20T22:43:%02d.123456789Z"
entries_ = st.lists(st.tuples(st.sampled_from([b"stdout", b"stderr"]), st.booleans(), st.text(alphabet="ab ", max_size=6)), max_size=30)


def log_file(path: Path, entries) -> Path:
    path.write_bytes(
        b"".join(STAMP % (i % 60) + b" " + stream + (b" F " if full else b" P ") + text.encode() + b"\n" for i, (stream, full, text) in enumerate(entries))
    )
    return path


@settings(max_examples=100, deadline=None)
@given(entries_, st.integers(0, 8))
def test_tail_equals_the_plain_way(tmp_path_factory, entries, lines):
    path = log_file(tmp_path_factory.mktemp("l") / "0.log", entries)
    text = b"".join(t.encode() + (b"\n" if full else b"") for _, full, t in entries)
    whole = text.split(b"\n")
    partial = whole.pop()
    # the last `lines` whole lines, and what is behind them
    expected = b"".join(line + b"\n" for line in (whole[-lines:] if lines else [])) + (partial if lines else b"")
    assert b"".join(containerlogs.tail(str(path), lines)) == expected


def test_tail_of_a_file_of_many_blocks(tmp_path):
    path = log_file(tmp_path / "0.log", [(b"stdout", True, f"line {i} " + "x" * 100) for i in range(3000)])
    got = b"".join(containerlogs.tail(str(path), 1500)).splitlines()
    assert [line.split()[1] for line in got] == [str(i).encode() for i in range(1500, 3000)]


async def collect(path: Path, options: LogOptions) -> bytes:
    return b"".join([chunk async for chunk in containerlogs.read(str(path), options, lambda: False)])


async def test_options(tmp_path):
    path = log_file(tmp_path / "0.log", [(b"stdout", True, "one"), (b"stderr", True, "two"), (b"stdout", False, "thr"), (b"stdout", True, "ee")])
    assert await collect(path, LogOptions()) == b"one\ntwo\nthree\n"
    assert await collect(path, LogOptions(stream="Stderr")) == b"two\n"
    assert await collect(path, LogOptions(limit_bytes=5)) == b"one\nt"
    assert (await collect(path, LogOptions(timestamps=True, tail=2))).startswith(STAMP % 1 + b" two\n")
    assert await collect(path, LogOptions(since=containerlogs.seconds_of(STAMP % 1))) == b"two\nthree\n"
    path.write_bytes(b"garbage\n\n" + path.read_bytes() + b"2026 half")
    assert await collect(path, LogOptions()) == b"one\ntwo\nthree\n"


async def test_following_through_rotation(tmp_path):
    path = log_file(tmp_path / "0.log", [(b"stdout", True, "one")])
    alive, got = True, []

    async def follow() -> None:
        async for chunk in containerlogs.read(str(path), LogOptions(follow=True), lambda: alive):
            got.append(chunk)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.05)

    async def reopen() -> None:
        log_file(path, [(b"stdout", True, "two")])

    assert await containerlogs.rotate(str(path), 10, 3, reopen)
    await asyncio.sleep(0.3)
    alive = False
    await asyncio.wait_for(task, 5)
    assert b"".join(got) == b"one\ntwo\n"


async def test_rotation_keeps_a_bound(tmp_path):
    path = tmp_path / "0.log"

    async def reopen() -> None:
        path.touch()

    for i in range(6):
        path.write_bytes(b"x" * 100)
        (tmp_path / f"0.log.2026010{i}-000000").touch() if i == 0 else None
        assert await containerlogs.rotate(str(path), 50, 3, reopen)
        for rotated in tmp_path.glob("0.log.2026*"):
            if not rotated.name.endswith(".gz"):
                os.rename(rotated, tmp_path / f"0.log.2026020{i}-000000")
        assert len(list(tmp_path.glob("0.log*"))) <= 3
    containerlogs.remove(str(path))
    assert not list(tmp_path.iterdir())


# --- images ---


def test_archives_are_the_same_each_time_and_well_formed(tmp_path):
    (first,) = images.build(["busybox:1", "busybox:2"], tmp_path / "a")
    (second,) = images.build(["busybox:1", "busybox:2"], tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        index = orjson.loads(tar.extractfile("index.json").read())
        assert [m["annotations"]["io.containerd.image.name"] for m in index["manifests"]] == ["docker.io/library/busybox:1", "docker.io/library/busybox:2"]
        for described in index["manifests"]:
            manifest = orjson.loads(tar.extractfile("blobs/" + described["digest"].replace(":", "/")).read())
            for blob in (manifest["config"], *manifest["layers"]):
                data = tar.extractfile("blobs/" + blob["digest"].replace(":", "/")).read()
                assert len(data) == blob["size"] and images._digest(data) == blob["digest"]


def test_unknown_image_is_a_clear_error(tmp_path, capsys):
    assert images.main(["build", "--out", str(tmp_path), "postgres"]) == 1
    assert "no recipe for image 'postgres'" in capsys.readouterr().err


def test_pause_reaps_and_ends(tmp_path):
    recipe = images.pause()
    _, binary = recipe.layer.entries["pause"]
    path = tmp_path / "pause"
    path.write_bytes(binary)
    path.chmod(0o755)
    process = subprocess.Popen([path])
    process.terminate()
    assert process.wait(5) == 0 or process.returncode == -15


# --- cgroups ---


@pytest.mark.parametrize(("cores", "shares"), [(0, 2), (0.001, 2), (0.1, 102), (1, 1024), (2.5, 2560), (1000, 262144)])
def test_cpu_shares(cores, shares):
    assert cgroups.cpu_shares(cores) == shares


def test_cpu_quota_and_weight():
    assert [cgroups.cpu_quota(c) for c in (0, 0.001, 0.5, 2)] == [0, 1000, 50000, 200000]
    assert cgroups.cpu_weight(2) == 1 and cgroups.cpu_weight(262144) == 10000


def test_cgroup_v2_layout(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("")
    groups = cgroups.Cgroups("/top", tmp_path, pids_max=100)
    pod = {"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "64Mi", "cpu": "2"}}}]}}
    assert groups.create(pod) == "/top/kubepods/burstable/podu"
    at = tmp_path / "top/kubepods/burstable/podu"
    assert (at / "cpu.max").read_text() == "200000 100000" and (at / "memory.max").read_text() == str(64 << 20) and (at / "pids.max").read_text() == "100"
