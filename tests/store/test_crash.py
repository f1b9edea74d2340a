"""kill -9 at random instants under load: every acknowledged write is there, none is half there, revisions go on.

FASTKUBE_CRASH_ROUNDS sets how many times (20), FASTKUBE_CRASH_SEED repeats a run's instants.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from fastkube._ext.tree import Tree
from fastkube.store import recovery

ROUNDS = int(os.environ.get("FASTKUBE_CRASH_ROUNDS", "20"))
LINES_MAX = 4000  # a round ends after at most so many acknowledged writes


def run_and_kill(directory: Path, rng: random.Random) -> list[list[str]]:
    """The lines that were out when it died."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.store.crashed", str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        lines = []
        for _ in range(rng.randrange(1, LINES_MAX)):
            line = child.stdout.readline()
            if not line:
                raise AssertionError(child.stderr.read().decode())
            lines.append(line)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        lines += rest.splitlines(keepends=True)
    return [line.decode().split() for line in lines if line.endswith(b"\n")]


def test_killed_at_any_instant_nothing_acknowledged_is_lost(tmp_path):
    seed = int(os.environ.get("FASTKUBE_CRASH_SEED", random.randrange(1 << 32)))
    print(f"FASTKUBE_CRASH_SEED={seed}")
    rng = random.Random(seed)
    acknowledged: dict[int, int] = {}
    leases: set[int] = set()  # granted, never to be revoked
    revoked: set[int] = set()
    last_revision = 1
    for _ in range(ROUNDS):
        for what, *numbers in run_and_kill(tmp_path, rng):
            if what == "start":
                assert int(numbers[0]) >= last_revision
            elif what == "lease":
                leases |= {int(numbers[0])} if int(numbers[0]) % 3 == 0 else set()
            elif what == "revoked":
                revoked.add(int(numbers[0]))
            else:
                acknowledged[int(what)], revision = map(int, numbers)
                last_revision = max(last_revision, revision)

        tree = Tree()
        found = recovery.recover(tmp_path, tree)
        assert found is not None and tree.visible >= last_revision
        last_revision = tree.visible
        for w, n in acknowledged.items():
            a, b = tree.get(b"/pair/%d/a" % w), tree.get(b"/pair/%d/b" % w)
            assert a is not None and b is not None and a.value == b.value and a.mod_revision == b.mod_revision
            stored = int(a.value.split(b".")[0])
            assert n <= stored <= n + 1  # one more may have been on its way
            gone = tree.range(b"/gone/%d/" % w, b"/gone/%d0" % w)[0]
            assert [(kv.key, kv.value) for kv in gone] == [(b"/gone/%d/%d" % (w, stored), b"at %d" % a.mod_revision)]
            acknowledged[w] = stored
        for lease in leases:
            assert lease in found.leases and tree.get(b"/leased/%d" % lease).lease == lease
        on_leases = {lease for lease, _ in tree.leased()}
        assert on_leases <= found.leases.keys() and not revoked & found.leases.keys() and not revoked & on_leases
