"""`stairwell doctor`: the exit code and both ways of printing."""

from __future__ import annotations

import json


def test_a_host_that_runs_these_tests_works(client, tmp_path):
    told = client.json("doctor", "--dir", str(tmp_path))
    assert told["works"] is True
    by_name = {one["name"]: one for one in told["findings"]}
    assert set(by_name["interpreter"]) == {"area", "name", "verdict", "seen", "advice"}
    assert by_name["interpreter"]["verdict"] == "ok"
    assert by_name[str(tmp_path)]["verdict"] in ("ok", "warning")
    # It asked nobody: the host is looked at, not the installation.
    assert client.plane.asked == []


def test_a_place_that_cannot_hold_state_fails_and_says_what_to_do(client):
    code, out, err = client("doctor", "--dir", "/proc")
    assert (code, err) == (1, "")
    assert "FAILS" in out
    assert "name a directory that you may write to" in out
    assert out.rstrip().splitlines()[-1].startswith("1 of ")
    code, out, _err = client("doctor", "--dir", "/proc", "--output", "json")
    assert code == 1
    assert json.loads(out)["works"] is False
