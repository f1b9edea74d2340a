"""Workqueue: client-go's laws, on virtual time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.client import workqueue
from fastkube.client.workqueue import ShutDown, Workqueue
from fastkube.testing import virtual


def test_a_key_is_worked_on_once_and_again_after_done() -> None:
    async def main() -> None:
        queue = Workqueue()
        for key in ("a", "b", "a"):
            queue.add(key)
        assert len(queue) == 2
        assert await queue.get() == "a"
        queue.add("a")  # while being worked on
        queue.add("a")
        assert await queue.get() == "b"
        assert len(queue) == 0
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        queue.done("b")
        assert queue.unfinished == 0

    virtual.run(main())


def test_backoff_doubles_and_forget_resets() -> None:
    async def main() -> list[float]:
        queue, loop, waits = Workqueue(), asyncio.get_running_loop(), []
        for _ in range(20):
            started = loop.time()
            queue.add_rate_limited("a")
            queue.done(await queue.get())
            waits.append(loop.time() - started)
        queue.forget("a")
        started = loop.time()
        queue.add_rate_limited("a")
        await queue.get()
        waits.append(loop.time() - started)
        return waits

    waits = virtual.run(main())
    assert waits[:5] == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08], abs=1e-5)
    assert waits[19] == pytest.approx(workqueue.BACKOFF_SECONDS_MAX) and waits[20] == pytest.approx(0.005, abs=1e-5)


def test_the_bucket_bounds_all_keys_together() -> None:
    async def main() -> float:
        queue = Workqueue()
        for i in range(300):
            queue.add_rate_limited(i)
        for _ in range(300):
            queue.done(await queue.get())
        return asyncio.get_running_loop().time()

    assert virtual.run(main()) == pytest.approx((300 - workqueue.BUCKET_BURST) / workqueue.BUCKET_PER_SECOND, rel=0.05)


def test_add_after_keeps_the_earliest() -> None:
    async def main() -> None:
        queue, loop = Workqueue(), asyncio.get_running_loop()
        queue.add_after("a", 10)
        queue.add_after("a", 5)
        queue.add_after("a", 20)
        queue.add_after("b", 0)
        assert await queue.get() == "b"
        assert await queue.get() == "a" and loop.time() == pytest.approx(5)
        queue.done("a")
        await asyncio.sleep(100)
        assert len(queue) == 0

    virtual.run(main())


def test_shut_down_drains_and_wakes_all() -> None:
    async def main() -> None:
        queue = Workqueue()
        queue.add("a")
        queue.add_after("late", 1)
        queue.shut_down()
        queue.add("b")
        assert await queue.get() == "a"
        with pytest.raises(ShutDown):
            await queue.get()
        other = Workqueue()
        getters = [asyncio.ensure_future(other.get()) for _ in range(3)]
        await asyncio.sleep(0)
        other.shut_down()
        assert all(isinstance(r, ShutDown) for r in await asyncio.gather(*getters, return_exceptions=True))

    virtual.run(main())


def test_a_cancelled_getter_loses_no_key() -> None:
    async def main() -> None:
        queue = Workqueue()
        first, second = asyncio.ensure_future(queue.get()), asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        queue.add("a")
        first.cancel()  # it was woken for "a" but has not run yet
        assert await second == "a"
        with pytest.raises(asyncio.CancelledError):
            await first

    virtual.run(main())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["add", "after", "limited"]), st.floats(0, 3)), max_size=40), st.integers(1, 4))
def test_every_added_key_is_worked_on_and_never_by_two(steps: list[tuple[int, str, float]], workers: int) -> None:
    async def main() -> None:
        queue = Workqueue()
        busy: set[int] = set()
        added: dict[int, int] = {}
        seen: dict[int, int] = {}
        count = 0

        async def work() -> None:
            nonlocal count
            while True:
                key = await queue.get()
                assert isinstance(key, int) and key not in busy
                busy.add(key)
                seen[key] = count
                count += 1
                await asyncio.sleep(0.7)
                busy.discard(key)
                queue.done(key)

        tasks = [asyncio.ensure_future(work()) for _ in range(workers)]
        for key, verb, seconds in steps:
            added[key] = count
            if verb == "add":
                queue.add(key)
            elif verb == "after":
                queue.add_after(key, seconds)
            elif verb == "limited":
                queue.add_rate_limited(key)
            await asyncio.sleep(seconds / 3)
        await asyncio.sleep(5000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(seen[key] >= at for key, at in added.items())

    virtual.run(main())
