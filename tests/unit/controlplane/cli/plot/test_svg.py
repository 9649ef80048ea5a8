"""The document that a story becomes."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from controlplane.cli.plot.story import Moment, Phase, Story
from controlplane.cli.plot.svg import HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw

NAME = "{http://www.w3.org/2000/svg}"
MIB = 1 << 20


def moment(start, p99=3.0, **changes):
    values = {"p50": p99 and p99 / 3, "p99": p99, "guest": 40.0 * MIB, "repair": 0.0, "limit": None}
    return Moment(start, start + 0.5, **{**values, **changes})


PHASES = (Phase("repair", 0.0, 8.0), Phase("verify", 8.0, 8.1))


def story(moments, phases=PHASES, **changes):
    values = {"title": "block2 slot 2", "end": 8.1, "summary": "fine"}
    return Story(phases=tuple(phases), moments=tuple(moments), **{**values, **changes})


def parsed(text):
    return ET.fromstring(text)


def texts(root):
    return [one.text for one in root.iter(f"{NAME}text")]


def path(root, kind):
    (found,) = [one.get("d") for one in root.iter(f"{NAME}path") if one.get("class") == kind]
    return found


STEADY = [moment(number / 2, limit=64.0 * MIB, repair=50.0 * MIB) for number in range(-6, 20)]


def test_a_story_is_three_panels_over_one_axis():
    root = parsed(draw(story(STEADY)))
    shown = texts(root)
    for word in (
        "guest latency",
        "guest throughput",
        "repair",
        "0 s",
        "8 s",
        "p50",
        "p99",
        "limit",
    ):
        assert word in shown
    assert "phases: repair 8.0 s, verify 100.0 ms" in shown
    assert root.find(f"{NAME}title").text == "block2 slot 2"


def test_bands_are_where_the_phases_are_and_small_ones_have_no_name():
    root = parsed(draw(story(STEADY)))
    bands = {one.get("class"): one for one in root.iter(f"{NAME}rect")}
    wide, small = bands["band band-repair"], bands["band band-verify"]
    assert float(wide.get("width")) / float(small.get("width")) == pytest.approx(80, rel=0.02)
    assert float(wide.get("x")) + float(wide.get("width")) == pytest.approx(
        float(small.get("x")), abs=0.2
    )
    assert "verify" not in texts(root)


def test_a_sample_without_latency_breaks_its_line():
    broken = [*STEADY[:5], moment(2.0, None), *STEADY[7:]]
    root = parsed(draw(story(broken)))
    assert path(root, "p99").count("M") == 2
    assert path(root, "guest").count("M") == 1
    assert len(re.findall("[ML]", path(root, "guest"))) == len(broken)


def test_everything_is_on_the_paper():
    wild = [moment(0.0, 1e-3), moment(0.5, 4e6, guest=1e12, repair=1e12), moment(1.0, None)]
    root = parsed(draw(story(wild)))
    numbers = re.findall(r"[ML]([\d.-]+) ([\d.-]+)", " ".join(
        one.get("d") for one in root.iter(f"{NAME}path")
    ))  # fmt: skip
    assert len(numbers) >= 9
    for x, y in numbers:
        assert LEFT <= float(x) <= WIDTH - RIGHT
        assert TOP <= float(y) <= HEIGHT
    for one in root.iter(f"{NAME}text"):
        assert 0 <= float(one.get("y")) <= HEIGHT


@pytest.mark.parametrize("moments", [[], [moment(0.0, None)], [moment(0.0)]])
def test_little_is_drawn_too(moments):
    assert "guest latency" in texts(parsed(draw(story(moments, phases=()))))


def test_texts_are_escaped_and_nothing_outside_is_asked_for():
    evil = '<script src="http://x"/>&amp;"]]>'
    text = draw(story(STEADY, title=evil, summary=evil))
    root = parsed(text)
    assert root.find(f"{NAME}title").text == evil
    assert evil in texts(root)
    assert not list(root.iter(f"{NAME}script"))
    assert {
        name for one in root.iter() for name in one.attrib if "href" in name or name == "src"
    } == set()
    style = root.find(f"{NAME}style").text
    assert "url(" not in style
    assert "@import" not in style
