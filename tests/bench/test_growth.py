"""What grows: what is made of the cases, and that each part runs, in its smallest form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import growth
from bench.mirror.stacks import missing_programs

ROOT = Path(__file__).resolve().parents[2]


def line_of(**values: list[float]) -> growth.Line:
    line = growth.Line("cost", "us", [int(case[1:]) for case in values])
    for case, found in values.items():
        for value in found:
            line.add(int(case[1:]), value)
    return line


def test_the_last_case_is_held_against_the_first_of_its_round() -> None:
    whole, *cases = line_of(_1=[1.0, 2.0, 4.0], _10=[9.0, 9.0, 9.0], _100=[4.0, 2.0, 1.0]).figures(
        1.25
    )
    assert whole.values == [4.0, 1.0, 0.25]
    assert (whole.median, whole.met) == (1.0, True)
    assert [case.median for case in cases] == [2.0, 9.0, 2.0]


def test_what_grows_misses_its_bound() -> None:
    assert line_of(_1=[1.0], _100=[1.3]).figures(1.25)[0].met is False
    assert line_of(_1=[1.0], _100=[9.0]).figures(None)[0].met is None


def test_reads_find_what_was_written() -> None:
    """The places are the same each time, and it ends by count, not by time."""
    written = growth.scattered(growth.WRITES, "nbd:x", 1 << 30, 100)
    read = growth.scattered(growth.READS, "nbd:x", 1 << 30, 100)
    assert [w for w in written if w not in read] == ["--rw=randwrite"]
    assert "--number_ios=100" in read
    assert not [word for word in read if word.startswith(("--runtime", "--time_based"))]


def test_the_picture_has_a_panel_for_each_line() -> None:
    lines = [line_of(_1=[1.0, 2.0], _16=[3.0]), line_of(_128=[0.0], _12800=[0.5])]
    drawn = ET.fromstring(growth.svg(lines, {"kernel": "<6>"}))
    kinds = [element.tag.rpartition("}")[2] for element in drawn]
    assert kinds.count("polyline") == 2
    assert kinds.count("circle") == 4


@pytest.mark.skipif("fio" in missing_programs(), reason="apt-get install fio")
def test_each_part_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.growth", "--quick", "--output", "json"]
    command += ["--dir", str(tmp_path), "--results", str(tmp_path / "results")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    names = [figure["name"] for figure in json.loads(done.stdout)["figures"]]
    assert "activation by machines: 2" in names
    assert len([name for name in names if not name.startswith(" ")]) == 8
    assert sorted(path.suffix for path in (tmp_path / "results").iterdir()) == [".json", ".svg"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("growth-")]
