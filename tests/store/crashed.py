"""The process that test_crash.py kills: writes as fast as it can and says on stdout what was acknowledged, one line each.

Writer W counts up: in one transaction it writes its number to /pair/W/a and /pair/W/b, deletes /gone/W/N-1 and puts /gone/W/N; then "W N REVISION" goes out.
Meanwhile history is compacted, the log is cut by snapshots, and leases come and go ("lease ID" and "revoked ID" go out).
"""

import asyncio
import os
import sys

from fastkube.runtime import logs
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import Delete, Put, StoreError

WRITERS = 16
PADDING = b"." * 700


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # one write: a line is out whole or not at all


async def write(store: EmbeddedStore, w: int) -> None:
    kv = store.get(b"/pair/%d/a" % w)
    n = int(kv.value.split(b".")[0]) if kv else 0
    while True:
        n += 1
        value = b"%d" % n + PADDING[: n % 700]
        result = await store.txn(
            [],
            [
                Put(b"/pair/%d/a" % w, value),
                Put(b"/pair/%d/b" % w, value),
                Delete(b"/gone/%d/%d" % (w, n - 1)),
                Put(b"/gone/%d/%d" % (w, n), b"at ", revision_at=3),
            ],
        )
        say(f"{w} {n} {result.revision}")


async def maintain(store: EmbeddedStore) -> None:
    while True:
        await asyncio.sleep(0.01)
        try:
            await store.compact(max(store.revision - 200, 2))
        except StoreError:
            continue
        await store._upkeep.cut_log()
        await store.snapshot()


async def lease(store: EmbeddedStore) -> None:
    while True:
        lease = await store.lease_grant(1000)
        await store.put(b"/leased/%d" % lease, b"", lease=lease)
        say(f"lease {lease}")
        if lease % 3:  # the others stay
            await store.lease_revoke(lease)
            say(f"revoked {lease}")


async def main(directory: str) -> None:
    store = EmbeddedStore(directory, segment_bytes=64 << 10)
    await store.start()
    say(f"start {store.revision}")
    await asyncio.gather(maintain(store), lease(store), *(write(store, w) for w in range(WRITERS)))


logs.configure("warning")
asyncio.run(main(sys.argv[1]))
