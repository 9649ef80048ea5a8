"""Traces as waterfalls."""

from io import BytesIO, StringIO, TextIOWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from controlplane.cli import waterfall
from stairwell.telemetry.v1.trace_service_pb2 import Span, SpanEvent

MS = 1_000_000


def span(span_id, parent, name, start, end, service="vmmd", **more) -> Span:
    return Span(
        trace_id="t",
        span_id=span_id,
        parent_span_id=parent,
        name=name,
        service=service,
        start_time_unix_nano=10**18 + start * MS,
        end_time_unix_nano=10**18 + end * MS,
        **more,
    )


TRACE = [
    span("c", "b", "apply", 30, 40),
    span("b", "a", "replace", 10, 90, "controlplane", instance="127.0.0.1:55400"),
    span("d", "b", "preflight", 12, 20, "controlplane", status="OK"),
    span("e", "c", "copy", 32, 39, "downstairs", status="ERROR", status_message="full"),
]


def text_of(renderable) -> str:
    console = Console(file=StringIO(), width=160, markup=False)
    console.print(renderable)
    return console.file.getvalue()


def test_children_stand_under_their_parent_in_order_of_time():
    rows = waterfall.rows(TRACE)
    assert [(row.depth, row.name) for row in rows] == [
        (0, "replace"),
        (1, "preflight"),
        (1, "apply"),
        (2, "copy"),
    ]
    assert [round(row.start * 1000) for row in rows] == [0, 2, 20, 22]
    assert [round(row.seconds * 1000) for row in rows] == [80, 8, 10, 7]


def test_the_picture():
    text = text_of(waterfall.waterfall("t", TRACE))
    lines = text.splitlines()
    assert lines[1].startswith("replace ")
    assert "controlplane 127.0.0.1:55400" in lines[1]
    assert lines[1].count("█") == waterfall.BAR_CELLS
    assert lines[4].startswith("    copy")
    assert "ERROR: full" in lines[4]
    assert "4 spans" in lines[-1]
    assert "services: controlplane, vmmd, downstairs" in lines[-1]


def test_methods_are_named_without_their_package():
    assert waterfall.short_name("stairwell.vmmd.v1.VolumeService/Verify") == "VolumeService/Verify"
    assert waterfall.short_name("repair.copy_extent") == "repair.copy_extent"


def test_a_trace_that_is_gone_says_so():
    assert "no spans" in text_of(waterfall.waterfall("t", []))


def test_many_like_siblings_are_folded_to_the_slowest_and_one_line():
    copies = [span(f"c{i}", "r", "copy", i, i + 1 + (i == 7) * 50, "downstairs") for i in range(20)]
    rows = waterfall.rows([span("r", "", "repair", 0, 100), *copies])
    assert len(rows) == 2 + waterfall.FOLD_KEEPS
    folded = [row for row in rows if row.folded]
    assert [row.name for row in folded] == ["18 more copy"]
    assert any(round(row.seconds * 1000) == 51 for row in rows)
    assert len(waterfall.rows([span("r", "", "repair", 0, 100), *copies], fold=False)) == 21


def test_failed_spans_are_not_hidden_by_folding():
    copies = [span(f"c{i}", "r", "copy", i, i + 5, "downstairs") for i in range(20)]
    copies[3].status = "ERROR"
    rows = waterfall.rows([span("r", "", "repair", 0, 100), *copies])
    assert [row.status for row in rows if not row.folded].count("ERROR") == 1


def test_a_span_that_ends_before_it_starts_has_no_length():
    (row,) = waterfall.rows([span("a", "", "odd", 5, 3)])
    assert row.seconds == 0
    assert "odd" in text_of(waterfall.waterfall("t", [span("a", "", "odd", 5, 3)]))


def test_damaged_parents_cannot_make_a_circle():
    ring = [span("a", "b", "one", 0, 1), span("b", "a", "two", 0, 1), span("c", "c", "self", 0, 1)]
    assert {row.name for row in waterfall.rows(ring)} == {"one", "two", "self"}


def test_a_bar_stays_inside_its_cells():
    assert waterfall.bar(0, 1, 1, 8) == "████████"
    assert waterfall.bar(0.999, 0.001, 1, 8) == "       █"
    assert waterfall.bar(0, 0, 1, 8) == "█"
    assert waterfall.bar(0, 0, 0, 8) == "█"


ids = st.sampled_from([f"s{i}" for i in range(12)])


@given(st.lists(st.tuples(ids, ids, st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_every_span_is_shown_or_counted(spans):
    messages = [
        span(own, parent, "x", start, start + length) for own, parent, start, length in spans
    ]
    shown = sum(row.folded or 1 for row in waterfall.rows(messages))
    folded_subtrees = waterfall.rows(messages, fold=False)
    assert len(folded_subtrees) == len({message.span_id for message in messages})
    assert shown <= len(folded_subtrees)


def drawn(width, *, encoding="utf-8", **how):
    """What a terminal of that width and encoding shows, line by line."""
    raw = BytesIO()
    file = TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=width, markup=False).print(waterfall.waterfall("t" * 32, LONG, **how))
    file.flush()
    return [line.rstrip() for line in raw.getvalue().decode(encoding).splitlines()]


LONG = [
    span("r", "", "replacement", 0, 0, "controlplane", instance="127.0.0.1:55400"),
    span(
        "s", "r", "replacement repair", 10, 90, "controlplane", instance="127.0.0.1:55400",
        status="ERROR", status_message="the repair of 127.0.0.1:8840 does not move; " * 3,
        events=[
            SpanEvent(
                name="progress", time_unix_nano=10**18 + 50 * MS, attributes={"percent": "10"}
            )
        ],
    ),
    span("w", "s", "stairwell.vmmd.v1.VolumeService/AMethodWithAVeryLongNameIndeed", 20, 21),
]  # fmt: skip
for _open in LONG[:1]:
    _open.end_time_unix_nano = 0


def test_eighty_columns_are_enough():
    lines = drawn(80, events=True)
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("replacement ")
    assert lines[1].endswith("█" * waterfall.NARROW_BAR_CELLS)
    assert lines[2].strip() == "under way"
    text = "\n".join(lines)
    assert "ERROR: the repair of 127.0.0.1:8840 does not move;" in text
    assert "- progress" in text
    assert "percent=10" in text
    assert "…" in text, "a name that is too long is cut"
    assert "1 ERROR" in text
    assert max(map(len, drawn(60, events=True))) <= 60


def test_a_wide_terminal_has_one_line_a_span_and_whole_names():
    lines = drawn(160)
    assert any("127.0.0.1:55400" in line for line in lines)
    assert any(line.strip().startswith("VolumeService/AMethodWithAVery") for line in lines)
    assert not any("progress" in line for line in lines), "events are shown on request"
    assert any("◆" in line for line in drawn(160, events=True))


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize(("encoding", "how"), [("ascii", {}), ("utf-8", {"ascii_only": True})])
def test_plain_terminals_get_ascii(width, encoding, how):
    text = "\n".join(drawn(width, encoding=encoding, events=True, **how))
    assert text.isascii()
    assert "#" * 10 in text
    assert "*" in text


def test_a_span_under_way_lasts_to_the_last_known_moment():
    rows = waterfall.rows(LONG)
    assert (rows[0].seconds, rows[0].status) == (pytest.approx(0.09), "under way")
