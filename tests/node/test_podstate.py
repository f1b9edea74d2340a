"""The pod state machine against a model of the runtime: random pods, random misfortunes, and the laws of podstate.py and podstatus.py."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.node import podspec, podstate, podstatus
from fastkube.node.model import Backoff, Container, Memory, RuntimePod, Sandbox, Termination
from fastkube.node.podstate import CreateSandbox, KillContainer, KillPod, RemoveContainer, StartContainer, plan

Object = dict[str, Any]
NOW = 1_000_000.0


def pod_of(containers: list[Object], init: list[Object] = (), policy: str = "Always", **meta: Any) -> Object:  # type: ignore[assignment]
    spec = {"restartPolicy": policy, "containers": containers, "initContainers": list(init), "nodeName": "n"}
    return {"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1, **meta}, "spec": spec, "status": {}}


def box(name: str, **more: Any) -> Object:
    return {"name": name, "image": "i", **more}


class Model:
    """A runtime that does what it is told, and a clock."""

    def __init__(self, pod: Object) -> None:
        self.pod = pod
        self.memory = Memory(start_time=NOW)
        self.runtime = RuntimePod("u", "p", "ns")
        self.now = NOW
        self.ids = 0
        self.started: list[tuple[float, str]] = []

    def id(self) -> str:
        self.ids += 1
        return f"id{self.ids}"

    def plan(self) -> podstate.Plan:
        before = copy.deepcopy((self.runtime, self.memory))
        out = plan(self.pod, self.runtime, self.memory, self.now)
        assert (self.runtime, self.memory) == before, "planning changes nothing"
        assert plan(self.pod, self.runtime, self.memory, self.now).actions == out.actions
        return out

    def settle(self) -> podstate.Plan:
        """Act until there is nothing left to do now."""
        for _ in range(50):
            out = self.plan()
            self.memory.waiting = {**out.waiting}
            if not out.actions:
                return out
            for action in out.actions:
                self.act(action)
                if isinstance(action, (CreateSandbox, KillPod)):
                    break
        raise AssertionError(f"never comes to rest: {out.actions}")

    def act(self, action: podstate.Action) -> None:
        runtime = self.runtime
        match action:
            case CreateSandbox(attempt):
                assert not any(s.ready for s in runtime.sandboxes), "one sandbox at a time"
                assert not any(r.running for r in runtime.containers), "nothing runs outside of a sandbox"
                runtime.sandboxes.insert(0, Sandbox(self.id(), attempt, True, self.now, ("10.0.0.1",)))
            case StartContainer(name, attempt, backoff):
                self.check_start(name)
                if backoff:
                    self.memory.backoffs[name] = backoff
                sandbox = runtime.sandbox
                assert sandbox is not None
                spec = podspec.find(self.pod, name)
                run = Container(self.id(), name, sandbox.id, attempt, "running", self.now, self.now, hash=podspec.container_hash(spec))
                runtime.containers.insert(0, run)
                self.started.append((self.now, name))
            case KillContainer(container):
                self.exit(container, 137)
            case RemoveContainer(container):
                runtime.containers.remove(container)
            case KillPod(finished):
                for run in list(runtime.running()):
                    self.exit(run, 137)
                for sandbox in runtime.sandboxes:
                    sandbox.ready = False
                self.memory.finished = self.memory.finished or finished

    def check_start(self, name: str) -> None:
        runtime, pod = self.runtime, self.pod
        last = runtime.latest(name)
        assert last is None or not last.running, f"{name} runs already"
        spec = podspec.find(pod, name)
        if last is not None and last.phase == "exited" and last.id not in self.memory.unhealthy:
            again = podspec.container_restarts(pod, spec, last.exit_code)
            other_sandbox = runtime.sandbox is not None and last.sandbox_id != runtime.sandbox.id
            assert again or (other_sandbox and name in {c["name"] for c in podspec.init_containers(pod)}), f"{name} was not to run again"
        order = [c["name"] for c in podspec.init_containers(pod)]
        before = order[: order.index(name)] if name in order else order
        if name in order and any(r.name in {c["name"] for c in podspec.containers(pod)} and r.sandbox_id == runtime.sandbox.id for r in runtime.containers):
            return  # the init phase is over: a sidecar comes back
        for earlier in before:
            run = next((r for r in runtime.containers if r.name == earlier and r.sandbox_id == runtime.sandbox.id), None)
            assert run is not None, f"{name} before {earlier}"
            if podspec.is_sidecar(podspec.find(pod, earlier)):
                if name in order or not any(r.name == name for r in runtime.containers):
                    assert run.running or run.phase == "exited"
            else:
                assert run.phase == "exited" and run.exit_code == 0, f"{name} before {earlier} has succeeded"

    def exit(self, run: Container, code: int) -> None:
        run.phase, run.exit_code, run.finished_at = "exited", code, self.now

    def status(self) -> Object:
        out = podstatus.status(self.pod, self.runtime, self.memory, self.now, ["10.1.1.1"])
        old = self.pod["status"].get("phase")
        assert old not in podstatus.TERMINAL or out["phase"] == old, "a pod that is over stays over"
        if out["phase"] in podstatus.TERMINAL:
            assert not any(r.running for r in self.runtime.containers)
        for where in ("containerStatuses", "initContainerStatuses"):
            for status in out.get(where, ()):
                assert len(status["state"]) == 1, status
                if status["ready"] and where == "containerStatuses":
                    assert "running" in status["state"] and status["started"]
        again = podstatus.status({**self.pod, "status": out}, self.runtime, self.memory, self.now + 5, ["10.1.1.1"])
        assert again == out, "what did not change keeps its times"
        self.pod["status"] = out
        return out


# --- random histories ---

names = st.sampled_from
containers_ = st.lists(st.sampled_from(["", "probe"]), min_size=1, max_size=3).map(
    lambda kinds: [box(f"c{i}", **({"startupProbe": {"exec": {}}, "readinessProbe": {"exec": {}}} if k else {})) for i, k in enumerate(kinds)]
)
init_ = st.lists(st.sampled_from(["init", "sidecar", "probed"]), max_size=3).map(
    lambda kinds: [
        box(f"i{i}", **({} if k == "init" else {"restartPolicy": "Always"}), **({"startupProbe": {"exec": {}}} if k == "probed" else {}))
        for i, k in enumerate(kinds)
    ]
)
events_ = st.lists(
    st.one_of(
        st.tuples(st.just("exit"), st.integers(0, 5), st.sampled_from([0, 1, 137])),
        st.tuples(st.just("sleep"), st.sampled_from([1.0, 11.0, 400.0, 2000.0]), st.none()),
        st.tuples(st.just("sandbox"), st.none(), st.none()),
        st.tuples(st.just("startup"), st.integers(0, 5), st.none()),
        st.tuples(st.just("unhealthy"), st.integers(0, 5), st.none()),
        st.tuples(st.just("unknown"), st.integers(0, 5), st.none()),
        st.tuples(st.just("forget"), st.none(), st.none()),
        st.tuples(st.just("delete"), st.none(), st.none()),
    ),
    max_size=12,
)


def happen(model: Model, event: tuple[str, Any, Any]) -> None:
    kind, which, value = event
    running = list(model.runtime.running())
    run = running[which % len(running)] if running and which is not None and kind != "sleep" else None
    match kind:
        case "exit" if run:
            model.exit(run, value)
        case "sleep":
            model.now += which
        case "sandbox" if model.runtime.sandbox:
            for each in running:
                model.exit(each, 137)
            model.runtime.sandbox.ready = False
        case "startup" if run:
            model.memory.started[run.id] = True
        case "unhealthy" if run:
            model.memory.unhealthy[run.id] = f"Container {run.name} failed liveness probe"
        case "unknown" if run:
            run.phase = "unknown"
        case "forget":  # the agent restarts
            finished = model.memory.finished
            model.memory = Memory(start_time=model.now, finished=finished)
        case "delete":
            model.pod["metadata"]["deletionTimestamp"] = "now"


@settings(max_examples=600, deadline=None)
@given(containers_, init_, st.sampled_from(["Always", "OnFailure", "Never"]), events_)
def test_laws_hold_through_any_history(containers: list[Object], init: list[Object], policy: str, events: list[Any]):
    model = Model(pod_of(containers, init, policy))
    model.settle()
    model.status()
    for event in events:
        happen(model, event)
        model.status()
        model.settle()
        model.now += 0.1
        status = model.status()
        if model.pod["metadata"].get("deletionTimestamp"):
            assert not model.runtime.active and status["phase"] in ("Succeeded", "Failed", "Pending")
            return


@settings(max_examples=100, deadline=None)
@given(containers_, init_, st.sampled_from(["Always", "OnFailure", "Never"]))
def test_a_lucky_pod_comes_up_and_rests(containers: list[Object], init: list[Object], policy: str):
    model = Model(pod_of(containers, init, policy))
    for _ in range(3 * len(init) + 3):
        model.settle()
        for run in list(model.runtime.running()):
            model.memory.started[run.id] = model.memory.ready[run.id] = True
            spec = podspec.find(model.pod, run.name)
            if run.name.startswith("i") and not podspec.is_sidecar(spec):
                model.exit(run, 0)
    status = model.status()
    assert status["phase"] == "Running" and all(s["ready"] for s in status["containerStatuses"])
    assert {c["status"] for c in status["conditions"]} == {"True"}
    assert model.plan() == podstate.Plan()


# --- examples ---


def crashed(policy: str, code: int, **more: Any) -> Model:
    model = Model(pod_of([box("c", **more)], policy=policy))
    model.settle()
    model.exit(model.runtime.latest("c"), code)
    return model


def test_back_off_doubles_to_its_bound_and_is_forgotten():
    model = Model(pod_of([box("c")]))
    model.settle()
    waits = []
    for _ in range(8):
        model.exit(model.runtime.latest("c"), 1)
        out = model.settle()
        waits.append(round(out.wake_at - model.now) if out.wake_at else 0)
        if out.waiting:
            assert out.waiting["c"].reason == "CrashLoopBackOff"
            model.now = out.wake_at
            model.settle()
        assert model.runtime.latest("c").running
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    assert model.runtime.latest("c").attempt == 8
    model.now += 601  # it ran well for long enough
    model.exit(model.runtime.latest("c"), 1)
    assert not model.settle().waiting


def test_back_off_message_is_upstreams():
    model = crashed("Always", 1)
    model.memory.backoffs["c"] = Backoff(80.0, model.now)
    assert model.plan().waiting["c"].message == "back-off 1m20s restarting failed container=c pod=p_ns(u)"


def test_policies_decide_who_runs_again():
    for policy, code, again in [("Always", 0, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)]:
        model = crashed(policy, code)
        model.settle()
        assert bool(list(model.runtime.running())) is again
        assert model.status()["phase"] == ("Running" if again else "Succeeded" if code == 0 else "Failed")


def test_container_rules_win_over_policies():
    rules = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]
    model = crashed("Never", 42, restartPolicyRules=rules)
    model.settle()
    assert model.runtime.latest("c").running
    model = crashed("Never", 43, restartPolicyRules=rules)
    model.settle()
    assert model.memory.finished


def test_failed_sandbox_of_a_pod_that_never_restarts_ends_it():
    model = Model(pod_of([box("c")], policy="Never"))
    model.settle()
    happen(model, ("sandbox", None, None))
    model.settle()
    assert model.memory.finished and model.status()["phase"] == "Failed"


def test_liveness_restart_is_at_once():
    model = Model(pod_of([box("c")]))
    model.settle()
    model.memory.unhealthy[model.runtime.latest("c").id] = "Container c failed liveness probe"
    first, second = model.plan().actions
    assert isinstance(first, KillContainer) and first.message == "Container c failed liveness probe, will be restarted"
    assert isinstance(second, StartContainer) and second.attempt == 1


def test_deadline_is_shown_once_nothing_runs():
    model = Model(pod_of([box("c")]))
    model.settle()
    model.memory.termination = Termination(1, "DeadlineExceeded", "too long", "Failed")
    assert model.status()["phase"] == "Running"
    model.settle()
    status = model.status()
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", "DeadlineExceeded", "too long")


def test_no_action_before_its_time():
    model = Model(pod_of([box("c")]))
    model.memory.retry_at[""] = NOW + 5
    out = model.plan()
    assert not out.actions and out.wake_at == NOW + 5


def test_readiness_gates_and_foreign_conditions():
    model = Model(pod_of([box("c")]))
    model.pod["spec"]["readinessGates"] = [{"conditionType": "example.com/gate"}]
    model.settle()
    ready = next(c for c in model.status()["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ReadinessGatesNotReady")
    assert ready["message"] == 'corresponding condition of pod readiness gate "example.com/gate" does not exist.'
    model.pod["status"]["conditions"].append({"type": "example.com/gate", "status": "True"})
    conditions = {c["type"]: c["status"] for c in model.status()["conditions"]}
    assert conditions["Ready"] == "True" and conditions["example.com/gate"] == "True"


def test_waiting_names_before_anything_ran():
    plain, initial = Model(pod_of([box("c")])), Model(pod_of([box("c")], [box("i")]))
    assert plain.status()["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert initial.status()["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert plain.status()["phase"] == "Pending"
