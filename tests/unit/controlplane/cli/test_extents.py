"""The map of a disk's extents on a terminal."""

from __future__ import annotations

from controlplane.cli.extents import LINES_MAX, WIDTH, extent_maps
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from tests.unit.controlplane.cli.test_render import text_of


def region(count: int, *runs: str) -> pb.RegionExtents:
    columns = [
        pb.ExtentColumn(slot=slot, address=f"127.0.0.1:88{slot + 1}0", runs=text)
        for slot, text in enumerate(runs)
    ]
    return pb.RegionExtents(
        path="sub_volumes[0]", extent_count=count, extent_bytes=64 << 20, columns=columns
    )


def test_each_extent_is_a_character_and_counted():
    lines = text_of(extent_maps([region(70, "70s", "3s2d65s", "60c2w8x")])).splitlines()
    shown = [line.rstrip() for line in lines if line.strip()]
    assert shown[:3] == [
        "sub_volumes[0]: 70 extents of 64 MiB",
        "slot 0  127.0.0.1:8810  70 in sync",
        "  " + "·" * 64,
    ]
    assert shown[3:8] == [
        "  " + "·" * 6,
        "slot 1  127.0.0.1:8820  68 in sync, 2 dirty",
        "  ···~~" + "·" * 59,
        "  " + "·" * 6,
        "slot 2  127.0.0.1:8830  60 copied, 2 being copied, 8 to be copied",
    ]
    assert shown[8:10] == ["  " + "#" * 60 + ">>xx", "  " + "x" * 6]
    assert "> being copied" in shown[-1]
    assert "worst" not in shown[-1]


def test_of_many_extents_a_character_shows_the_worst():
    text = text_of(extent_maps([region(12_800, "6399s1d6400s", "12799c1w", "12800u")]))
    lines = [line.rstrip() for line in text.splitlines()]
    assert "12800 extents of 64 MiB, 25 to a character" in lines[0]
    assert "the worst of several" in lines[-1]
    starts = [number for number, line in enumerate(lines) if line.startswith("slot")]
    maps = ["".join(line.strip() for line in lines[at + 1 : at + 1 + LINES_MAX]) for at in starts]
    assert all(len(one) == WIDTH * LINES_MAX for one in maps)
    assert (maps[0].count("~"), maps[0].index("~")) == (1, 6399 // 25)
    assert maps[1] == "#" * 511 + ">"
    assert set(maps[2]) == {"?"}
