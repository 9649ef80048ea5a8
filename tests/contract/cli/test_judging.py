"""`vcr check` and `vcr diff` against the real judge: what people read, and exit codes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.main import main
from tests.contract.judge_plane import judge_plane

EXAMPLES = Path(__file__).parents[3] / "examples"
DISKS = str(EXAMPLES / "crucible-disks.json")
REPLACE = str(EXAMPLES / "replace.json")
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with judge_plane() as found:
        yield found


class Judged:
    """Runs the command line against the judge, in a directory of its own."""

    def __init__(self, port: int, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._port = port
        self._directory = directory
        self._capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        code = main(["-p", str(self._port), "vcr", *argv])
        out, err = self._capsys.readouterr()
        return code, out, err

    def file(self, value: Any, name: str = "new.json") -> str:
        path = self._directory / name
        path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1))
        return str(path)


@pytest.fixture
def judged(port, tmp_path, capsys) -> Judged:
    return Judged(port, tmp_path, capsys)


@pytest.fixture
def vcr() -> Any:
    return json.loads(Path(DISKS).read_text())[0]["volume_construction_request"]


def line_of(path: str, text: str) -> int:
    """The first line of a file that holds the text."""
    lines = Path(path).read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def test_a_check_tells_all_with_lines_in_the_order_of_the_file(judged, vcr):
    region = vcr["sub_volumes"][0]
    region["gen"] = 0
    region["generation"] = 3
    region["opts"]["key"] = "short"
    region["opts"]["target"][2] = "127.0.0.1"
    path = judged.file(vcr, "bad.json")
    code, out, err = judged("check", path)
    assert (code, err) == (1, "")
    first, *rest = out.splitlines()
    assert first == f"{path}: not valid, 4 problems"
    assert [re.search(r"\((\w+)\)$", line)[1] for line in rest] == [
        "GENERATION_ZERO", "KEY_INVALID", "INVALID_ADDRESS", "UNKNOWN_FIELD",
    ]  # fmt: skip
    places = [int(re.search(r"\[bad.json:(\d+)\]", line)[1]) for line in rest]
    assert places == [
        line_of(path, text) for text in ('"gen"', '"key"', '"127.0.0.1"', '"generation"')
    ]
    assert "short" not in out


def test_a_key_given_twice_is_told_with_the_rest(judged, vcr):
    vcr["sub_volumes"][0]["extent_count"] = 0
    text = json.dumps(vcr, indent=1).replace('"gen": 1', '"gen": 1, "gen": 2')
    path = judged.file(text)
    code, out, _ = judged("check", path)
    assert code == 1
    assert "sub_volumes[0].gen" in out
    assert "DUPLICATE_KEY" in out
    assert "EXTENT_COUNT_INVALID" in out


def test_a_request_as_text_in_a_replacement_file(judged, vcr):
    vcr["sub_volumes"][0]["gen"] = 0
    text = json.dumps(vcr).replace('"extent_count": 128', '"extent_count": 128, "extent_count": 1')
    path = judged.file({"name": "block2", "vcr_json": text})
    code, out, _ = judged("check", path)
    assert code == 1
    line = line_of(path, "vcr_json")
    assert f"sub_volumes[0].gen [new.json:{line}]: is 0, must be at least 1" in out
    assert f"sub_volumes[0].extent_count [new.json:{line}]: is written twice" in out
    code, _, err = judged("check", judged.file({"vcr_json": "{,}"}))
    assert code == 1
    assert f"new.json:{line - 1}: vcr_json:1:2: not JSON" in err


def test_several_files_are_judged_each(judged, vcr, tmp_path):
    vcr["sub_volumes"][0]["gen"] = 0
    bad, missing = judged.file(vcr, "bad.json"), str(tmp_path / "none.json")
    code, out, err = judged("check", REPLACE, bad, missing)
    assert (code, err) == (1, "")
    assert f"{REPLACE}: valid; 8 GiB" in out
    assert f"{bad}: not valid, 1 problem\n" in out
    assert f"cannot read {missing}" in out
    assert judged("check", REPLACE, DISKS)[0] == 0
    code, out, _ = judged("check", REPLACE, bad, missing, "--output", "json")
    data = json.loads(out)
    assert [one["valid"] for one in data] == [True, False, False]
    assert data[1]["violations"][0]["reason"] == "GENERATION_ZERO"
    assert data[0]["summary"]["regions"] == 1


def test_what_cannot_be_said_of_a_bad_request_is_null(judged, vcr):
    vcr["sub_volumes"][0]["extent_count"] = "many"
    _, out, _ = judged("check", judged.file(vcr), "--output", "json")
    summary = json.loads(out)["summary"]
    assert (summary["total_bytes"], summary["regions"]) == (None, 1)


def test_fields_that_may_be_null_are_taken_when_they_are_not(judged, vcr):
    files = {name: f"/etc/tls/{name}" for name in ("cert_pem", "key_pem", "root_cert_pem")}
    vcr["sub_volumes"][0]["opts"] |= {"key": KEY, "flush_timeout": 2.5, **files}
    code, out, _ = judged("check", judged.file(vcr))
    assert code == 0
    assert "encrypted" in out


def test_a_diff_shows_both_trees_with_what_changed(judged):
    code, out, err = judged("diff", DISKS, REPLACE)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.search(r"OLD crucible-disks.json +NEW replace.json", lines[0])
    assert any(re.fullmatch(r"~ +gen: 1 +gen: 2 *", line) for line in lines)
    changed = [line for line in lines if line.startswith("~")]
    assert len(changed) == 2
    assert re.search(r"127.0.0.1:8830 +target\[2\]: 127.0.0.1:8840", changed[1])
    assert lines[-1].startswith("replace: sub_volumes[0].opts.target[2] (slot 2)")
    assert "\x1b" not in out


def test_outcomes_and_exit_codes(judged, vcr):
    old = judged.file(vcr, "old.json")
    raised = copy.deepcopy(vcr)
    raised["sub_volumes"][0]["gen"] = 2
    assert judged("diff", old, judged.file(raised))[0] == 3
    assert judged("diff", judged.file(raised), old)[0] == 1
    code, out, _ = judged("diff", old, old)
    assert code == 4
    assert "unchanged" in out.splitlines()[1]


def test_objections_stand_at_their_place_and_below(judged, vcr):
    new = copy.deepcopy(vcr)
    new["sub_volumes"][0]["gen"] = 0
    new["sub_volumes"][0]["opts"]["key"] = KEY
    path = judged.file(new)
    code, out, _ = judged("diff", DISKS, path)
    assert code == 1
    rows = out.splitlines()
    assert any(re.fullmatch(r"~ +gen: 1 +gen: 0 +\[1\] *", row) for row in rows)
    assert any(re.fullmatch(r"~ +key: null +key: \(hidden\) +\[2\] *", row) for row in rows)
    line = line_of(path, '"gen"')
    assert f"  [1] sub_volumes[0].gen [new.json:{line}]: is 0, must be at least 1" in out
    assert KEY not in out


def test_a_diff_as_json_has_what_the_text_has(judged, vcr):
    new = copy.deepcopy(vcr)
    new["sub_volumes"][0]["gen"] = 0
    code, out, _ = judged("diff", DISKS, judged.file(new), "--output", "json")
    assert code == 1
    data = json.loads(out)
    assert data["outcome"] == "reject"
    assert [one["reason"] for one in data["violations"]] == ["GENERATION_LOWERED"]
    assert data["differences"] == [
        {"path": "sub_volumes[0].gen", "change": "changed", "old": "1", "new": "0"}
    ]


def test_what_cannot_be_read_is_told_of_both_files(judged, vcr):
    old, new = copy.deepcopy(vcr), copy.deepcopy(vcr)
    old["sub_volumes"][0]["generation"] = 1
    new["sub_volumes"][0]["gen"] = "one"
    code, _, err = judged("diff", judged.file(old, "old.json"), judged.file(new))
    assert code == 1
    assert re.search(r"sub_volumes\[0\].generation \[old.json:\d+\]: is not a field", err)
    assert re.search(r"sub_volumes\[0\].gen \[new.json:\d+\]: must be a whole number", err)


def test_a_diff_tells_all_that_a_check_would(judged, vcr):
    vcr["sub_volumes"][0]["generation"] = 1
    vcr["sub_volumes"][0]["gen"] = 0
    path = judged.file(vcr)
    _, checked, _ = judged("check", path)
    code, _, err = judged("diff", DISKS, path)
    assert code == 1
    assert [line.strip() for line in err.splitlines()[1:]] == [
        line.strip() for line in checked.splitlines()
    ]


def test_what_the_judge_cannot_read_is_located_on_either_side(judged, vcr):
    old, new = copy.deepcopy(vcr), copy.deepcopy(vcr)
    old["sub_volumes"][0]["opts"]["target"][0] = "nowhere"
    new["sub_volumes"][0]["opts"]["id"] = "nobody"
    code, _, err = judged("diff", judged.file(old, "old.json"), judged.file(new))
    assert code == 1
    assert re.search(r"original.sub_volumes\[0\].opts.target\[0\] \[old.json:\d+\]", err)
    assert re.search(r"replacement.sub_volumes\[0\].opts.id \[new.json:\d+\]", err)
