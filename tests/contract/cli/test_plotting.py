"""`stairwell replacement plot`: the file, and what stands in its way."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from controlplane.cli.main import main
from stairlib.model.errors import NotFoundError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from tests.unit.controlplane.cli.plot.test_story import T0, replacement, sample


@pytest.fixture
def told(plane):
    plane.answers["GetReplacement"] = pb.GetReplacementResponse(replacement=replacement())
    plane.answers["GetDiskHistory"] = disk_pb.GetDiskHistoryResponse(
        samples=[sample(end) for end in range(-5, 20)]
    )
    return plane


def test_a_replacement_is_drawn_to_a_file(client, told, tmp_path):
    place = tmp_path / "run.svg"
    code, out, err = client("replacement", "plot", "r1", "-f", str(place), "--around", "4")
    assert (code, err) == (0, "")
    assert out.startswith(f"{place}: ")
    root = ET.parse(place).getroot()
    assert any("block2 slot 2" in (one.text or "") for one in root.iter())
    (asked,) = told.requests("GetDiskHistory")
    assert (asked.name, asked.after_time.seconds) == ("block2", T0 - 4)


def test_without_a_name_it_has_the_replacements(client, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = client.json("replacement", "plot", "r1")
    assert answer["file"] == "r1.svg"
    assert answer["samples"] == 25
    assert (tmp_path / "r1.svg").exists()


@pytest.mark.parametrize(
    ("file", "words"), [("nowhere/run.svg", "no directory"), ("run.png", "ends in .svg")]
)
def test_a_place_that_will_not_do_is_told_before_anything_is_asked(
    client, told, tmp_path, file, words
):
    code, out, err = client("replacement", "plot", "r1", "--file", str(tmp_path / file))
    assert (code, out) == (1, "")
    assert words in err
    assert told.asked == []


def test_a_file_that_cannot_be_written_is_told(client, told, tmp_path):
    (tmp_path / "run.svg").mkdir()
    code, _out, err = client("replacement", "plot", "r1", "-f", str(tmp_path / "run.svg"))
    assert code == 1
    assert "cannot be written" in err


def test_a_machine_that_remembers_nothing_of_it_is_told(client, told, tmp_path):
    told.answers["GetDiskHistory"] = disk_pb.GetDiskHistoryResponse(samples=[sample(900)])
    code, _out, err = client("replacement", "plot", "r1", "-f", str(tmp_path / "run.svg"))
    assert code == 1
    assert "remembers nothing of that time" in err
    assert "stairwell trace r1" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("GetReplacement", NotFoundError("replacement", "r1"), "r1"),
        ("GetDiskHistory", UnavailableError("vmmd is away"), "vmmd is away"),
    ],
)
def test_refusals_come_through(client, told, tmp_path, method, error, words):
    told.answers[method] = error
    code, _out, err = client("replacement", "plot", "r1", "-f", str(tmp_path / "run.svg"))
    assert code == 1
    assert words in err


def test_the_demo_refuses_such_a_place_before_it_starts_anything(capsys, tmp_path):
    code = main(["demo", "--plot", str(tmp_path / "a" / "run.svg"), "--dir", str(tmp_path / "d")])
    assert code == 1
    assert "no directory" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
