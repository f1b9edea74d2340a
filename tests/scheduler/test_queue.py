"""The scheduling queue against its laws, under random histories on a clock of its own."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from fastkube.scheduler.podinfo import PodInfo, Templates
from fastkube.scheduler.queue import BACKOFF_SECONDS_MAX, UNSCHEDULABLE_SECONDS_MAX, SchedulingQueue

templates = Templates()


def pod(name: str, priority: int = 0, gated: bool = False) -> PodInfo:
    spec = {"containers": [], "priority": priority}
    if gated:
        spec["schedulingGates"] = [{"name": "g"}]
    return templates.pod({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": spec})


def test_highest_priority_first_then_first_come():
    queue = SchedulingQueue()
    for name, priority in (("a", 0), ("b", 5), ("c", 5), ("d", 9)):
        queue.add(pod(name, priority), 0)
    assert [queue.pop(0).pod.key for _ in range(4)] == ["d/d", "d/b", "d/c", "d/a"]
    assert queue.pop(0) is None


def test_a_refused_pod_waits_for_an_event_that_helps():
    queue = SchedulingQueue()
    queue.add(pod("a"), 0)
    waiting = queue.pop(0)
    queue.failed(waiting, frozenset({"NodeResourcesFit"}), 0)
    assert queue.pop(0.5) is None
    assert queue.moved(0.5, {"NodePorts"}) == 0
    assert queue.moved(0.5, {"NodeResourcesFit"}, lambda waiting: False) == 0
    assert queue.moved(0.5, {"NodeResourcesFit"}) == 1
    assert queue.pop(0.9) is None  # still backing off
    assert queue.pop(1.0) is waiting
    queue.failed(waiting, frozenset({"NodeResourcesFit"}), 1)
    assert queue.moved(5, {"NodeResourcesFit"}) == 1  # the backoff of two seconds is over
    assert queue.pop(5) is waiting


def test_an_event_during_the_decision_is_not_missed():
    queue = SchedulingQueue()
    queue.add(pod("a"), 0)
    waiting = queue.pop(0)
    queue.moved(0, None)
    queue.failed(waiting, frozenset({"NodeResourcesFit"}), 0)
    assert queue.next_due() == 1.0
    assert queue.pop(1.0) is waiting


def test_gates_hold_until_the_pod_itself_changes():
    queue = SchedulingQueue()
    queue.add(pod("a", gated=True), 0)
    queue.gate(queue.pop(0), 0)
    assert queue.moved(1, None) == 0
    assert queue.pop(1000) is None
    queue.add(pod("a"), 2)
    assert queue.pop(2).pod.key == "d/a"


def test_parked_pods_come_again_after_five_minutes():
    queue = SchedulingQueue()
    queue.add(pod("a"), 0)
    queue.failed(queue.pop(0), frozenset({"x"}), 0)
    assert queue.flush(UNSCHEDULABLE_SECONDS_MAX - 1) == 0
    assert queue.flush(UNSCHEDULABLE_SECONDS_MAX + 1) == 1


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "pop", "fail", "transient", "done", "move", "tick"]), st.integers(0, 4)), max_size=60))
def test_no_pod_is_lost_or_popped_twice(history):
    queue, now, flying, wanted = SchedulingQueue(), 0.0, {}, set()
    for action, n in history:
        name = f"d/{n}"
        if action == "add":
            queue.add(pod(str(n), n % 2), now)
            wanted.add(name)
        elif action == "remove":
            queue.remove(name)
            wanted.discard(name)
            flying.pop(name, None)
        elif action == "pop":
            waiting = queue.pop(now)
            if waiting:
                assert waiting.pod.key in wanted and waiting.pod.key not in flying
                flying[waiting.pod.key] = waiting
        elif action in ("fail", "transient") and name in flying:
            queue.failed(flying.pop(name), frozenset({"r"}), now, transient=action == "transient")
        elif action == "done" and name in flying:
            queue.done(flying.pop(name))
            wanted.discard(name)
        elif action == "move":
            queue.moved(now, None)
        now += n if action == "tick" else 0
    for waiting in flying.values():
        queue.failed(waiting, frozenset({"r"}), now)
    queue.moved(now, None)
    came = []
    while waiting := queue.pop(now + BACKOFF_SECONDS_MAX + 1):
        heapq.heappush(came, waiting.pod.key)
    assert sorted(came) == sorted(wanted)
