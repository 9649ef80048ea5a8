"""Two control planes' stores on one database: what each decides holds for the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from controlplane.core import replacement as core
from controlplane.core.leases import Kind, LeaseLostError
from controlplane.core.progress import Progress
from controlplane.core.records import DownstairsRecord, InstanceState, Role
from controlplane.core.replacement import Replacement, step
from controlplane.store.base import StoredAnswer, StoredSpan, Wish
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    LimitError,
    StateError,
    UnavailableError,
)
from tests.postgres_server import PostgresServer
from tests.unit.controlplane.core.records_made import (
    DISK_KEY,
    GEOMETRY,
    INSTANCE,
    VOLUME,
    disk,
    instance,
    region,
    replacement,
    scrub,
    volume,
)

pytestmark = pytest.mark.postgres

Two = tuple[SqlStore, SqlStore]
ROUNDS = 8


@pytest.fixture
def shared(postgres: PostgresServer, tmp_path: Path) -> Place:
    return Place(tmp_path, url=postgres.new_database(), key_text="5a" * 32, lease_seconds=60.0)


@pytest.fixture
async def two(shared: Place) -> AsyncIterator[Two]:
    # At once, on an empty database: one makes the schema and the key's proof.
    first, second = await asyncio.gather(SqlStore.open(shared), SqlStore.open(shared))
    yield first, second
    await first.close()
    await second.close()


def begun(number: int = 7) -> Replacement:
    record = replacement(number)
    for event in (core.Validated(at=1001), core.Preflighted(at=1002), core.Recorded(at=1003)):
        record, _ = step(record, event)
    return record


async def expire(shared: Place, postgres: PostgresServer) -> None:
    """All leases end, as if their time had passed."""
    database = shared.url.rpartition("/")[2]
    postgres.sql(
        *(
            f"UPDATE {table} SET lease_until = 1"
            for table in ("instances", "replacements", "duties")
        ),
        database=database,
    )


async def test_a_generation_is_handed_out_once(two: Two) -> None:
    numbers = await asyncio.gather(
        *(store.hand_out_generation(VOLUME, 3) for _ in range(ROUNDS) for store in two)
    )
    assert sorted(numbers) == list(range(3, 3 + 2 * ROUNDS))


async def test_a_target_becomes_a_member_of_one_volume(two: Two) -> None:
    for number in range(1, 1 + ROUNDS):
        target = f"t:{number}"
        if number % 2:
            spare = DownstairsRecord(target, Role.SPARE, UUID(int=5), None, GEOMETRY)
            await two[0].put_downstairs(spare)
        calls = []
        for side, store in enumerate(two):
            owner = instance(id=uuid4(), name=f"vm{number}-{side}")
            spec = volume(region((target, f"x{side}:{number}", f"y{side}:{number}")), id=uuid4())
            one = disk(key=uuid4(), name=owner.name, instance_id=owner.id, construction=spec)
            calls.append(store.add_instance(owner, [one]))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        (refused,) = [each for each in outcomes if isinstance(each, BaseException)]
        assert isinstance(refused, StateError), refused
        assert refused.reason == "TARGET_IN_USE"


async def test_a_name_is_given_once(two: Two) -> None:
    for number in range(ROUNDS):
        name = f"vm{number}"
        outcomes = await asyncio.gather(
            *(store.add_instance(instance(id=uuid4(), name=name), []) for store in two),
            return_exceptions=True,
        )
        (refused,) = [each for each in outcomes if isinstance(each, BaseException)]
        assert isinstance(refused, AlreadyExistsError), refused


async def test_one_of_two_replacements_from_the_same_request(two: Two) -> None:
    await two[0].add_instance(instance(), [disk()])
    outcomes = await asyncio.gather(
        *(store.begin_replacement(begun(7 + side)) for side, store in enumerate(two)),
        return_exceptions=True,
    )
    (refused,) = [each for each in outcomes if isinstance(each, BaseException)]
    assert isinstance(refused, ConflictError)
    assert refused.reason == "RECORDED_VCR_CHANGED"
    assert len(await two[1].running_replacements()) == 1


async def test_one_of_two_changes_of_a_recorded_request(two: Two) -> None:
    await two[0].add_instance(instance(), [disk()])
    for number in range(ROUNDS):
        now = (await two[0].disk("block2")).construction
        outcomes = await asyncio.gather(
            *(
                store.record_construction(DISK_KEY, now, volume(region(gen=2 + 2 * number + side)))
                for side, store in enumerate(two)
            ),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in outcomes) == ["ConflictError", "NoneType"]


async def test_of_two_scrubs_of_a_volume_one_begins(two: Two) -> None:
    await two[0].add_instance(instance(), [disk()])
    outcomes = await asyncio.gather(
        *(store.begin_scrub(scrub()) for store in two), return_exceptions=True
    )
    (refused,) = [each for each in outcomes if isinstance(each, BaseException)]
    assert isinstance(refused, ConflictError)
    assert refused.reason == "SCRUB_RUNNING"


async def test_the_first_answer_to_a_request_stands(two: Two) -> None:
    for number in range(ROUNDS):
        stood = await asyncio.gather(
            *(
                store.save_answer("M", f"r{number}", StoredAnswer(b"d", bytes([side])), 1.0)
                for side, store in enumerate(two)
            )
        )
        assert stood[0] == stood[1] == await two[0].answer("M", f"r{number}")


async def test_a_lease_is_one_control_plane_s(
    two: Two, shared: Place, postgres: PostgresServer
) -> None:
    first, second = two
    await first.add_instance(instance(), [disk()])
    record = begun()
    lease = await first.begin_replacement(record)
    assert {each.kind for each in await second.claim_leases(9)} == {Kind.DUTY}
    assert {each.key for each in await first.renew_leases()} == {str(INSTANCE), lease.key}
    assert {each.kind for each in await second.renew_leases()} == {Kind.DUTY}
    with pytest.raises(LeaseLostError):
        await second.save_replacement(record, lease.epoch)
    await expire(shared, postgres)
    # Ended is ended: it is neither renewed nor used, even if nobody has taken it yet.
    assert await first.renew_leases() == []
    with pytest.raises(LeaseLostError):
        await first.save_replacement(record, lease.epoch)
    taken = {each.kind: each for each in await second.claim_leases(9)}
    assert taken[Kind.REPLACEMENT].epoch == lease.epoch + 1
    moved, _ = step(record, core.Applied(at=1006, result="STARTED"))
    for refused in (
        first.save_replacement(moved, lease.epoch),
        first.retire_member(moved, lease.epoch),
        first.set_instance_state(INSTANCE, InstanceState.FAILED, "", 1),
    ):
        with pytest.raises(LeaseLostError):
            await refused
    assert (await second.replacement(record.id)).state is record.state
    await second.save_replacement(moved, taken[Kind.REPLACEMENT].epoch)
    assert await first.replacement(record.id) == moved
    await second.release_leases(taken.values())
    assert {each.epoch for each in await first.claim_leases(9)} == {3}


async def test_a_duty_is_one_control_plane_s_and_its_notes_go_on(
    two: Two, shared: Place, postgres: PostgresServer
) -> None:
    first, second = two
    (lease,) = await first.claim_leases(9)
    assert (lease.kind, lease.key) == (Kind.DUTY, "caretaker")
    assert await second.claim_leases(9) == []
    await first.save_duty_notes(lease.key, "[1]", lease.epoch)
    assert await second.duty_notes(lease.key) == "[1]"
    await expire(shared, postgres)
    (taken,) = await second.claim_leases(9)
    assert taken.epoch == lease.epoch + 1
    with pytest.raises(LeaseLostError):
        await first.save_duty_notes(lease.key, "[2]", lease.epoch)
    await second.save_duty_notes(lease.key, "[3]", taken.epoch)
    assert await first.duty_notes(lease.key) == "[3]"
    # Let go in order, it is free at once.
    await second.release_leases([taken])
    assert [each.epoch for each in await first.claim_leases(9)] == [3]


async def test_of_two_that_claim_at_once_each_takes_other_rows(
    two: Two, shared: Place, postgres: PostgresServer
) -> None:
    for number in range(ROUNDS):
        await two[0].add_instance(instance(id=UUID(int=100 + number), name=f"vm{number}"), [])
    await expire(shared, postgres)
    taken = await asyncio.gather(*(store.claim_leases(99) for store in two))
    keys = [each.key for leases in taken for each in leases]
    names = [str(UUID(int=100 + number)) for number in range(ROUNDS)]
    assert sorted(keys) == sorted([*names, "caretaker"])


async def test_an_epoch_of_before_is_no_lease_of_one_s_own(
    two: Two, shared: Place, postgres: PostgresServer
) -> None:
    """Lost and taken again by the same control plane: what still runs under the old one stops."""
    first, _ = two
    await first.add_instance(instance(), [disk()])
    record = begun()
    old = await first.begin_replacement(record)
    await expire(shared, postgres)
    taken = {each.kind: each for each in await first.claim_leases(9)}
    with pytest.raises(LeaseLostError):
        await first.save_replacement(record, old.epoch)
    await first.save_replacement(record, taken[Kind.REPLACEMENT].epoch)


async def test_progress_is_stored_by_who_holds_the_lease_alone(
    two: Two, shared: Place, postgres: PostgresServer
) -> None:
    first, second = two
    await first.add_instance(instance(), [disk()])
    record = begun()
    lease = await first.begin_replacement(record)
    done = replace(record, updated_at=2000.0, progress=Progress(bytes_done=4096))
    with pytest.raises(LeaseLostError):
        await second.save_progress(done, lease.epoch)
    await first.save_progress(done, lease.epoch)
    assert (await second.replacement(record.id)).progress.bytes_done == 4096
    await expire(shared, postgres)
    further = replace(done, progress=Progress(bytes_done=8192))
    with pytest.raises(LeaseLostError):
        await first.save_progress(further, lease.epoch)
    assert (await second.replacement(record.id)).progress.bytes_done == 4096


async def test_an_ended_span_stays_ended_whoever_stores_it_as_open(two: Two) -> None:
    for number in range(4 * ROUNDS):
        trace = f"t{number}"
        opened = StoredSpan(trace, "s", b"open", ended=False)
        await two[0].save_spans([opened])
        await asyncio.gather(
            two[0].save_spans([opened]),
            two[1].save_spans([StoredSpan(trace, "s", b"ended")]),
            two[0].save_spans([opened]),
        )
        assert [(each.body, each.ended) for each in await two[0].spans(trace)] == [(b"ended", True)]


async def test_wishes_and_their_answers_are_heard(two: Two) -> None:
    first, second = two
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    second.listen(lambda kind, key: heard.put_nowait((kind, key)))
    async with asyncio.timeout(30):
        assert await heard.get() == ("", "")
        wish = Wish(str(uuid4()), Kind.REPLACEMENT, "k", "pause", "{}")
        await first.add_wish(wish)
        assert await heard.get() == ("wish", "k")
        assert await second.open_wishes() == [wish]
        await second.answer_wish(wish, "good")
        assert await first.wish_answer(wish.id) == "good"
        assert await second.open_wishes() == []
        assert await first.take_back_wish(wish.id) == "good"
        assert await first.take_back_wish(wish.id) is None
        await first.add_instance(instance(), [disk()])
        await first.set_instance_state(INSTANCE, InstanceState.FAILED, "", 1)
        # Its own are not among them.
        assert await heard.get() == ("instance", str(INSTANCE))


async def test_a_database_that_takes_no_changes_says_so_and_comes_back(
    two: Two, shared: Place, postgres: PostgresServer
) -> None:
    store = two[0]
    await store.add_instance(instance(), [disk()])
    name = shared.url.rpartition("/")[2]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on", cut)
    with pytest.raises(UnavailableError) as caught:
        await store.hand_out_generation(VOLUME, 1)
    assert caught.value.reason == "STORE_READ_ONLY"
    assert (await store.instance("crub")).name == "crub"
    postgres.sql(f"ALTER DATABASE {name} RESET default_transaction_read_only", cut)
    # Connections that were cut meanwhile are made again within the call.
    assert await store.hand_out_generation(VOLUME, 1) == 1


async def test_a_transaction_that_stands_still_holds_nobody_up_for_long(
    two: Two, shared: Place, postgres: PostgresServer
) -> None:
    import psycopg

    await two[0].add_instance(instance(), [disk()])
    with psycopg.connect(shared.url) as stopped:
        stopped.execute("SELECT 1 FROM instances FOR UPDATE")
        with pytest.raises(UnavailableError) as caught:
            await two[0].set_instance_state(INSTANCE, InstanceState.FAILED, "", 1)
        assert caught.value.reason == "STORE_BUSY"
        stopped.rollback()
    assert await two[0].set_instance_state(INSTANCE, InstanceState.FAILED, "", 1) is not None


async def test_a_text_that_cannot_be_stored_is_the_request_s_fault(two: Two) -> None:
    with pytest.raises(InvalidRequestError):
        await two[0].disk("a\0b")


async def test_names_are_listed_by_their_letters_numbers(two: Two) -> None:
    for name in ("b", "A", "a", "B", "_", "a-1", "a1"):
        await two[0].add_instance(instance(id=uuid4(), name=name), [])
    names = [each.name for each in await two[0].list_instances(limit=9)]
    assert names == sorted(names)
    assert [each.name for each in await two[1].list_instances(after="B", limit=9)] == names[2:]


def test_a_full_disk_is_a_limit() -> None:
    import psycopg.errors
    from sqlalchemy.exc import OperationalError

    from controlplane.store import failures

    error = OperationalError("INSERT", {}, psycopg.errors.DiskFull("no space left"))
    meant = failures.meaning(error, "database 'd'")
    assert isinstance(meant, LimitError)
    assert meant.reason == "STORE_FULL"


async def test_no_password_and_no_row_in_an_error(two: Two, shared: Place) -> None:
    away = replace(shared, url=shared.url.replace("127.0.0.1:", "127.0.0.1:1"))
    with pytest.raises((UnavailableError, InvalidRequestError)) as caught:
        await SqlStore.open(away)
    assert "not-to-be-seen" not in caught.value.message
    assert "not-to-be-seen" not in repr(shared)
