"""What the fleet, its policy, drains and placements look like."""

from __future__ import annotations

from rich.console import Console, RenderableType

from controlplane.cli import fleet_view
from stairlib.wire.durations import duration
from stairwell.controlplane.v1 import fleet_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb


def text_of(item: RenderableType) -> str:
    console = Console(width=200, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(item)
    return captured.get()


def test_the_fleet() -> None:
    one = pb.Downstairs(
        address="[::1]:8810",
        role=pb.DownstairsRole.DOWNSTAIRS_ROLE_SPARE,
        block_size=4096,
        blocks_per_extent=16384,
        extent_count=128,
        region_id="u",
        host="h1",
        trouble="it hangs",
        drain_id="d",
    )
    text = text_of(fleet_view.fleet_table([one]))
    for word in ("[::1]:8810", "spare (drained)", "8 GiB", "h1", "[::1]:8810: it hangs"):
        assert word in text
    assert "fleet register" in text_of(fleet_view.fleet_table([]))
    assert "host h1 stands for it" in text_of(fleet_view.downstairs_view(one))


def test_the_policy_tells_why_each_member_waits() -> None:
    policy = pb.FleetPolicy(automatic=True, grace=duration(600), at_once_max=2)
    one = pb.FaultedMember(disk="block2", slot=1, target="a:1", waits_for="a spare")
    text = text_of(fleet_view.policy_view(policy, [one]))
    for word in ("10:00 min", "2 in the fleet", "block2", "a:1", "a spare"):
        assert word in text
    assert "nothing is replaced unasked" in text_of(fleet_view.policy_view(pb.FleetPolicy()))


def test_a_drain() -> None:
    drain = pb.Drain(
        id="d",
        target="h1",
        state=pb.DRAIN_STATE_RUNNING,
        moves=[
            pb.DrainMove(
                replacement_id="r",
                disk="one",
                slot=1,
                new_target="b:2",
                state=replacement_pb.REPLACEMENT_STATE_DONE,
            )
        ],
        left=[pb.DrainMember(disk="two", slot=2, target="a:1", waits_for="no spare")],
    )
    assert fleet_view.drain_line(drain) == "h1: running, 1 of 2 moved; two slot 2 waits: no spare"
    drain.moves[0].state = replacement_pb.REPLACEMENT_STATE_REPAIR
    assert "one slot 1 goes to b:2 (repair)" in fleet_view.drain_line(drain)
    text = text_of(fleet_view.drain_view(drain))
    assert "no spare" in text
    assert "0 of 2" in text
    assert "running" in text_of(fleet_view.drains_table([drain]))
    assert fleet_view.drains_table([]) == "nothing was drained"


def test_a_start_tells_what_was_not_taken() -> None:
    answer = replacement_pb.StartReplacementResponse(slot=2, old_target="a:1", new_target="b:1")
    answer.placement.rejections.add(address="c:1", reason="SAME_HOST", detail="host h has one")
    answer.placement.warnings.append("it is on the host of another member")
    text = text_of(fleet_view.start_view(answer))
    for word in ("would be started", "c:1", "host h has one (SAME_HOST)", "warning: it is on"):
        assert word in text
    answer.replacement.id = "r-1"
    assert "replacement r-1" in text_of(fleet_view.start_view(answer))
