"""A store that fails under a running control plane: nothing is lost, and it goes on by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.core.replacement import State
from stairlib.model.errors import LimitError, UnavailableError
from tests.contract.controlplane_house import document_disk, house, refused

FULL = LimitError("the store is full", reason="STORE_FULL")


@pytest.mark.parametrize("state", [State.REPAIR, State.VERIFY, State.RETIRE, State.DONE])
async def test_a_commit_that_failed_may_have_been_one(tmp_path: Path, state: State) -> None:
    """The answer to a commit is lost with the connection; what was stored is found there."""
    async with house(tmp_path / "data") as home:
        home.vmmd.quick = True
        await home.create_running()
        store: Any = home.control.store
        real = store.save_replacement
        lost = []

        async def unsure(record: Any, epoch: int) -> None:
            await real(record, epoch)
            if record.state is state and not lost:
                lost.append(record.state)
                raise UnavailableError("the line was cut", reason="STORE_UNAVAILABLE")

        store.save_replacement = unsure
        answer = await home.replace(home.vcr())
        done = await home.wait_replacement(answer.replacement_id, "DONE")
        assert lost == [state]
        # It goes on from what was stored: nothing is sent a second time.
        assert [home.vmmd.count(each) for each in ("ReplaceVcr", "VerifyVolume")] == [1, 1]
        stored = await store.replacement((await store.list_replacements(limit=1))[0][1].id)
        assert [each.number for each in stored.transitions] == list(range(len(done.transitions)))
        moved = [each.state for each in stored.transitions]
        assert moved == [
            State.PREFLIGHT, State.RECORD, State.APPLY, State.REPAIR, State.VERIFY, State.RETIRE,
            State.DONE,
        ]  # fmt: skip


async def test_a_full_store_is_waited_for(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as home:
        instance = await home.create()
        store: Any = home.control.store
        real = store.set_instance_state
        failures = [FULL, FULL, RuntimeError("a bug")]

        async def full(*words: Any) -> Any:
            if failures:
                raise failures.pop(0)
            return await real(*words)

        store.set_instance_state = full
        await home.vmmd.set_machine(instance.id, "RUNNING")
        # The one who follows the machine is still there when there is room again.
        await home.wait_instance("RUNNING")
        assert not failures


async def test_a_user_is_told_what_is_wrong_with_the_store(tmp_path: Path) -> None:
    async with house(tmp_path / "data") as home:
        store: Any = home.control.store

        async def full(*_words: Any) -> Any:
            raise FULL

        store.add_instance = full
        code, error = await refused(home.create(disks=[document_disk()]))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.reason == "STORE_FULL"
