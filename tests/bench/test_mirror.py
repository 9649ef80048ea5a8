"""The comparison with QEMU's mirror: what it makes of runs, and that it runs at all.

The whole of it is run where qemu-nbd and fio are installed, in its smallest form: that shows that
every mirror starts, is filled, answers every workload and is gone afterwards, and nothing of who is
quicker.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.mirror import __main__ as command
from bench.mirror import jobs, plot, report
from bench.mirror.jobs import JOBS, Run
from bench.mirror.stacks import BrokenMirrorError, missing_programs

ROOT = Path(__file__).resolve().parents[2]
RANDREAD = next(job for job in JOBS if job.name == "4K randread QD32")


def run_of(rate: float) -> Run:
    return Run(rate, 10.0, 20.0, 1000, 5.0, 6.0, 7.0, 0.0)


def runs_of(**rates: list[float]) -> dict[tuple[str, str], list[Run]]:
    names = {"quorum": report.PEER, "ours": report.OURS, "fifo": report.FIFO, "gcm": report.GCM}
    return {
        (RANDREAD.name, names[name]): [run_of(rate) for rate in own] for name, own in rates.items()
    }


def test_a_ratio_is_made_within_a_round() -> None:
    # The medians of the rates are the same; the ratios of the rounds are not.
    found = report.ratios(runs_of(quorum=[1.0, 2.0, 4.0], ours=[4.0, 2.0, 1.0]), [RANDREAD])
    (one,) = found
    assert one.values == (4.0, 1.0, 0.25)
    assert one.median == 1.0


@pytest.mark.parametrize(
    ("rate", "verdict"), [(5.99, "MISSED"), (6.0, "must"), (11.9, "must"), (12.0, "aim")]
)
def test_a_median_below_the_bound_is_told(rate: float, verdict: str) -> None:
    (one,) = report.ratios(runs_of(quorum=[1.0], ours=[rate]), [RANDREAD])
    assert one.verdict == verdict


def test_each_comparison_has_its_own_base() -> None:
    found = report.ratios(runs_of(quorum=[1.0], ours=[8.0], fifo=[4.0], gcm=[4.0]), [RANDREAD])
    seen = {(one.stack, one.versus): (one.median, one.verdict) for one in found}
    assert seen == {
        (report.OURS, report.PEER): (8.0, "must"),
        (report.GCM, report.OURS): (0.5, "MISSED"),
        (report.OURS, report.FIFO): (2.0, "must"),
    }


def test_processor_time_is_the_peers_over_ours() -> None:
    runs = runs_of(quorum=[1.0], ours=[9.0])
    (own,) = runs[RANDREAD.name, report.OURS]
    runs[RANDREAD.name, report.OURS] = [dataclasses.replace(own, client_us=1.0, servers_us=1.0)]
    assert report.processor_ratio(RANDREAD, runs, report.OURS) == [6.5]


def test_the_mean_is_told_of_all_workloads_only() -> None:
    runs = {
        (job.name, stack): [run_of(rate)]
        for job in JOBS
        for stack, rate in ((report.PEER, 1.0), (report.OURS, 2.0))
    }
    assert report.geometric_mean(report.ratios(runs, JOBS)) == pytest.approx(2.0)
    assert report.geometric_mean(report.ratios(runs, JOBS[1:])) is None


def test_the_picture_is_svg_and_shows_all_ratios() -> None:
    found = report.ratios(runs_of(quorum=[1.0, 1.0], ours=[100.0, 0.01]), [RANDREAD])
    root = ET.fromstring(plot.svg(found, {"kernel": "6 <&>"}))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 1
    # What is off the scale stands at its end.
    (line,) = [one for one in root.iter() if one.get("stroke-opacity")]
    assert float(line.get("x1", "")) == plot.LEFT
    assert float(line.get("x2", "")) == plot.LEFT + plot.WIDTH


def fio_report(**changes: object) -> str:
    side = {
        "total_ios": 2000,
        "runtime": 1000,
        "clat_ns": {"percentile": {"50.000000": 5000, "99.000000": 90000}},
    }
    job = {"error": 0, "read": side, "usr_cpu": 5.0, "sys_cpu": 15.0, "job_runtime": 1000}
    return "fio: a warning\n" + json.dumps({"jobs": [job | changes]})


def test_a_rate_counts_until_all_was_carried_out() -> None:
    found = jobs.outcome(RANDREAD, fio_report(), drain=1.0, client_used=0.1, servers_used=0.2)
    assert found.rate == 1000.0
    assert (found.p50, found.p99) == (5.0, 90.0)
    assert (found.fio_us, found.client_us, found.servers_us) == pytest.approx((100.0, 50.0, 100.0))


def test_a_run_in_which_requests_failed_is_no_run() -> None:
    with pytest.raises(BrokenMirrorError, match="error 5"):
        jobs.outcome(RANDREAD, fio_report(error=5), 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--only", "no such workload"], "matches none"),
        (["--only", "("], "regular expression"),
        (["--rounds", "0"], "above zero"),
        (["--size-mib", "17"], "multiple of 16"),
        (["--dir", "/nowhere"], "no directory"),
        (["--stack", "raid"], "invalid choice"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert word in capsys.readouterr().err


def test_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.main(["--memory-dir", str(tmp_path), "--dir", str(tmp_path)]) == 2
    assert "apt-get install qemu-utils fio" in capsys.readouterr().err


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    bool(missing_programs()), reason=f"apt-get install {' '.join(missing_programs())}"
)
def test_the_whole_of_it_runs(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.mirror", "--quick", "--seconds", "0.2"]
    words += ["--size-mib", "16", "--memory-dir", str(tmp_path), "--dir", str(tmp_path)]
    found = subprocess.run(
        [*words, "--results", str(tmp_path / "results")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    (path,) = (tmp_path / "results").glob("*.json")
    document = json.loads(path.read_text())
    told = {(one["job"], one["stack"]) for one in document["ratios"]}
    for job in JOBS:
        assert (job.name, report.OURS) in told
        assert (job.name, report.CONTROL) in told
    assert all(run["rate"] > 0 for run in document["runs"])
    ET.parse(path.with_suffix(".svg"))
    # No mirror, and nothing of one, is left.
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
    assert not _processes_of(str(tmp_path))


def _processes_of(place: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if place in line:
                found.append(line)
    return found
