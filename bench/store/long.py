"""A long run: millions of revisions over a bounded history do not make the store grow.

    python -m bench.store.long [--revisions 5000000] [--keys 10000] [--history-bytes 67108864]

Prints resident memory ten times on the way; values vary between 100 bytes and 4 KiB, keys come and go.
"""

from __future__ import annotations

import argparse
import asyncio
import random

import uvloop

from bench.store.million import rss, show
from fastkube.store.embedded import EmbeddedStore

GROUP = 500


async def run(revisions: int, keys: int, history_bytes: int) -> None:
    store = EmbeddedStore(None, history_bytes=history_bytes)
    await store.start()
    rng = random.Random(1)
    blob = rng.randbytes(8192)
    for _ in range(10):
        for _ in range(revisions // 10 // GROUP):
            writes: list = []
            for _ in range(GROUP):
                key = b"/registry/pods/default/web-%07d" % rng.randrange(keys)
                if rng.random() < 0.1:
                    writes.append(store.delete(key))
                else:
                    at = rng.randrange(4000)
                    writes.append(store.put(key, blob[at : at + rng.randrange(100, 4096)]))
            await asyncio.gather(*writes)
        show(
            f"resident after {store.revision:,} revisions, {store.count(b'/', b'0'):,} keys, {store._tree.history_bytes >> 20} MiB history", rss() * 1024, "MiB"
        )
    await store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--revisions", type=int, default=5_000_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--history-bytes", type=int, default=64 << 20)
    args = parser.parse_args()
    uvloop.run(run(args.revisions, args.keys, args.history_bytes))
