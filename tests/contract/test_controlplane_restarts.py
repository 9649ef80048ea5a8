"""A replacement whose control plane ends at every step and is started again.

The control plane is ended while it waits for the peer that the step needs, so that the step has
been stored and its effect was sent but not answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.core import replacement as core
from controlplane.core.records import Desired
from controlplane.core.replacement import State, step
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import StateError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from tests.contract.controlplane_house import SECONDS, House, house, refused, running
from tests.contract.controlplane_peers import ScriptedVmmd

TOTAL = 8 << 30
# The call each state waits in, and what it is for.
CALLS = {"APPLY": "ReplaceVcr", "REPAIR": "WatchVolume", "VERIFY": "VerifyVolume"}


@asynccontextmanager
async def peers(tmp_path: Path) -> AsyncIterator[House]:
    """Peers that outlive the control planes of a test, and a first control plane."""
    async with house(tmp_path / "data") as home:
        await home.create_running()
        yield home


@asynccontextmanager
async def again(home: House) -> AsyncIterator[House]:
    """Another control plane on the same data, after the first has ended."""
    async with running(home.data, home.vmmd, home.members) as found:
        yield found


class Gate:
    """Holds a method of the scripted vmmd until it is opened."""

    def __init__(self, script: ScriptedVmmd, method: str) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.script, self.method = script, method
        script.gates[method] = self

    async def wait(self) -> None:
        self.reached.set()
        await self.opened.wait()

    def open(self) -> None:
        self.script.gates.pop(self.method, None)
        self.opened.set()


@pytest.mark.parametrize("state", CALLS)
async def test_a_restart_while_a_step_is_under_way(tmp_path: Path, state: str) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        home.vmmd.quick = state == "VERIFY"
        gate = Gate(home.vmmd, CALLS[state])
        answer = await home.replace(home.vcr())
        async with asyncio.timeout(SECONDS):
            await gate.reached.wait()
        stored = await home.wait_replacement(answer.replacement_id, state)
        await home.control.__aexit__(None, None, None)
        gate.open()
        home.vmmd.quick = True
        if state == "REPAIR":
            await home.vmmd.finish("block2", 2)
        second = await stack.enter_async_context(again(home))
        done = await second.wait_replacement(answer.replacement_id, "DONE")
        assert done.trace_id == stored.trace_id
        assert [each.event for each in done.transitions] == [
            "Validated", "Preflighted", "Recorded", "Applied", "Repaired", "Verified", "Retired",
        ]  # fmt: skip
        again_sent = await second.replace(second.vcr())
        assert again_sent.result == disk_pb.REPLACE_RESULT_COMPLETED_ALREADY
        trace = await second.replacements.GetReplacementTrace(
            pb.GetReplacementTraceRequest(id=answer.replacement_id), timeout=SECONDS
        )
        names = {span.name for span in trace.spans}
        assert {f"replacement {each}" for each in ("preflight", "apply", "verify")} <= names


@pytest.mark.parametrize("state", [State.APPLY, State.REPAIR, State.VERIFY, State.RETIRE])
async def test_a_crash_right_after_a_step_was_stored(tmp_path: Path, state: State) -> None:
    """The step is in the store and its effect was never sent."""
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        gate = Gate(home.vmmd, "GetVolumeInfo")
        answer = await home.replace(home.vcr())
        async with asyncio.timeout(SECONDS):
            await gate.reached.wait()
        await home.control.__aexit__(None, None, None)
        gate.open()
        await move(home, state)
        home.vmmd.quick = True
        if state is not State.APPLY:
            home.vmmd.slot("block2", 2).address = home.members[3].address
        second = await stack.enter_async_context(again(home))
        done = await second.wait_replacement(answer.replacement_id, "DONE")
        assert done.bytes_done == TOTAL


async def move(home: House, state: State) -> None:
    """Brings the one stored replacement to a state, as a control plane that crashed there would."""
    events: list[Any] = [
        core.Applied(at=1, result="STARTED"), core.Repaired(at=2),
        core.Verified(at=3, extents=128, members=3),
    ]  # fmt: skip
    store = await SqlStore.open(Place(home.data))
    epochs = {each.key: each.epoch for each in await store.claim_leases(9)}
    (record,) = await store.running_replacements()
    while record.state is not state:
        record, _ = step(record, events.pop(0))
        await store.save_replacement(record, epochs[str(record.id)])
    await store.close()


async def test_progress_does_not_fall_over_a_restart(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        answer = await home.replace(home.vcr())
        await home.wait_replacement(answer.replacement_id, "REPAIR")
        await home.vmmd.progress("block2", 2, TOTAL // 2, TOTAL)
        await home.wait_replacement(answer.replacement_id, lambda r: r.bytes_done == TOTAL // 2)
        await home.control.__aexit__(None, None, None)
        await home.vmmd.progress("block2", 2, 4096, TOTAL)
        second = await stack.enter_async_context(again(home))
        record = await second.replacement(answer.replacement_id)
        assert record.bytes_done == TOTAL // 2
        await home.vmmd.finish("block2", 2)
        await second.wait_replacement(answer.replacement_id, "DONE")


async def test_vmmd_away_is_waited_for_and_said(tmp_path: Path) -> None:
    async with peers(tmp_path) as home:
        home.vmmd.quick = True
        home.vmmd.failures["GetVolumeInfo"] = [UnavailableError("vmmd is away")] * 3
        answer = await home.replace(home.vcr())
        seen = await home.wait_replacement(answer.replacement_id, lambda r: bool(r.blocked_on))
        assert seen.blocked_on == "vmmd is away"
        assert seen.attempt == 0
        done = await home.wait_replacement(answer.replacement_id, "DONE")
        assert not done.blocked_on


async def test_an_instance_that_does_not_run_is_waited_for_and_said(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as home:
        await home.create()
        answer = await home.replace(home.vcr())
        assert answer.result == disk_pb.REPLACE_RESULT_STARTED
        seen = await home.wait_replacement(answer.replacement_id, lambda r: bool(r.blocked_on))
        assert "filled when the instance runs" in seen.blocked_on
        assert seen.state == pb.REPLACEMENT_STATE_REPAIR
        await home.vmmd.set_volume("block2", "ACTIVE")
        await home.wait_replacement(answer.replacement_id, "DONE")


async def test_a_refusal_that_lasts_fails_it_with_the_reason_and_the_same_file_retries(
    tmp_path: Path,
) -> None:
    async with peers(tmp_path) as home:
        home.vmmd.quick = True
        refusal = StateError("slot 1 is OFFLINE", reason="SIBLING_IN_TROUBLE")
        home.vmmd.failures["ReplaceVcr"] = [refusal] * (core.ATTEMPTS_MAX + 1)
        answer = await home.replace(home.vcr())
        failed = await home.wait_replacement(answer.replacement_id, "FAILED")
        assert failed.last_error == "slot 1 is OFFLINE"
        assert failed.attempt == core.ATTEMPTS_MAX
        retried = await home.replace(home.vcr())
        assert retried.result == disk_pb.REPLACE_RESULT_STARTED_ALREADY
        assert retried.replacement_id == answer.replacement_id
        await home.wait_replacement(answer.replacement_id, "DONE")


async def test_a_slot_whose_earlier_replacement_never_arrived(tmp_path: Path) -> None:
    """The machine still has the first target; the recorded request has the second."""
    async with peers(tmp_path) as home:
        home.vmmd.quick = True
        refusal = StateError("not now", reason="SIBLING_IN_TROUBLE")
        home.vmmd.failures["ReplaceVcr"] = [refusal] * (core.ATTEMPTS_MAX + 1)
        first = await home.replace(home.vcr())
        await home.wait_replacement(first.replacement_id, "FAILED")
        second = await home.replace(home.vcr(slots=(0, 1, 4), gen=3))
        await home.wait_replacement(second.replacement_id, "DONE")
        sent = [request for name, request in home.vmmd.calls if name == "ReplaceVcr"][-1]
        assert sent.original.sub_volumes[0].opts.target[2] == home.members[2].address
        assert sent.replacement.sub_volumes[0].opts.target[2] == home.members[4].address


async def test_a_machine_that_ended_fails_it(tmp_path: Path) -> None:
    async with peers(tmp_path) as home:
        gate = Gate(home.vmmd, "VerifyVolume")
        home.vmmd.quick = True
        answer = await home.replace(home.vcr())
        async with asyncio.timeout(SECONDS):
            await gate.reached.wait()
        (machine,) = home.vmmd.machines
        await home.vmmd.set_machine(machine, "DESTROYED")
        await home.wait_instance("DESTROYED")
        home.vmmd.failures["VerifyVolume"] = [StateError("it has ended", reason="MACHINE_ENDED")]
        gate.open()
        failed = await home.wait_replacement(answer.replacement_id, "FAILED")
        assert failed.last_error == "instance 'crub' is DESTROYED: it has ended"


async def test_the_instance_s_state_is_known_after_a_restart(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(peers(tmp_path))
        await home.control.__aexit__(None, None, None)
        second = await stack.enter_async_context(again(home))
        (machine,) = home.vmmd.machines
        await home.vmmd.set_machine(machine, "STOPPING")
        found = await second.wait_instance("STOPPING")
        assert found.id == machine
        found = await second.instances.GetInstance(
            instance_pb.GetInstanceRequest(name="crub"), timeout=SECONDS
        )
        assert found.instance.state == instance_pb.INSTANCE_STATE_STOPPING


async def test_a_machine_made_again_by_one_that_ended_before_it_ran_runs(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(house(tmp_path / "data"))
        await home.create()
        request = instance_pb.SetInstanceStateRequest(name="crub")
        request.state = instance_pb.REQUESTED_STATE_RUN
        await home.instances.SetInstanceState(request, timeout=SECONDS)
        (machine,) = home.vmmd.machines
        await home.vmmd.set_machine(machine, "RUNNING")
        await home.wait_instance("RUNNING")
        gate = Gate(home.vmmd, "SetMachineState")
        await home.vmmd.lose(machine)
        async with asyncio.timeout(SECONDS):
            await gate.reached.wait()
        await home.control.__aexit__(None, None, None)
        assert home.vmmd.machines[machine].state == machine_pb.MACHINE_STATE_CREATING
        gate.open()
        second = await stack.enter_async_context(again(home))
        await second.wait_instance("STARTING")
        assert home.vmmd.count("EnsureMachine") == 2, "the one that is there is taken"


@pytest.mark.parametrize("wanted", ["RUN", "STOP"])
async def test_a_state_whose_control_plane_ends_before_vmmd_heard_of_it_comes(
    tmp_path: Path, wanted: str
) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(house(tmp_path / "data"))
        await (home.create() if wanted == "RUN" else home.create_running())
        (machine,) = home.vmmd.machines
        gate = Gate(home.vmmd, "SetMachineState")
        asked = asyncio.ensure_future(ask_state(home, wanted))
        async with asyncio.timeout(SECONDS):
            await gate.reached.wait()
        # Held before vmmd has done anything; what waits there is never done.
        home.vmmd.failures["SetMachineState"] = [UnavailableError("killed")]
        await home.control.__aexit__(None, None, None)
        with pytest.raises(grpc.aio.AioRpcError):
            await asked
        gate.open()
        second = await stack.enter_async_context(again(home))
        await second.wait_instance("STARTING" if wanted == "RUN" else "STOPPING")
        assert home.vmmd.machines[machine].state != machine_pb.MACHINE_STATE_CREATING


async def test_a_state_that_vmmd_did_not_answer_comes_and_one_it_refused_does_not(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(house(tmp_path / "data"))
        await home.create()
        home.vmmd.failures["SetMachineState"] = [
            StateError("the machine is about to stop", reason="STATE_CHANGE_REFUSED"),
            UnavailableError("no answer"),
        ]
        code, error = await refused(ask_state(home, "RUN"))
        assert error.reason == "STATE_CHANGE_REFUSED"
        found = await home.control.store.instance("crub")
        assert found.desired is Desired.CREATED, "as before it was asked for"
        code, error = await refused(ask_state(home, "RUN"))
        assert code is grpc.StatusCode.UNAVAILABLE
        await home.wait_instance("STARTING")
        assert (await home.control.store.instance("crub")).desired is Desired.RUNNING


def ask_state(home: House, wanted: str) -> Any:
    request = instance_pb.SetInstanceStateRequest(name="crub")
    request.state = instance_pb.RequestedState.Value(f"REQUESTED_STATE_{wanted}")
    return home.instances.SetInstanceState(request, timeout=SECONDS)
