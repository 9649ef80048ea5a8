"""Coverage-guided fuzzing of the judge: any bytes as a construction request, in JSON or protobuf.

    make fuzz                                  a minute, with a corpus made from examples and tables
    .venv/bin/python tests/fuzz/fuzz_construction.py --seconds 600 --keep DIR
    .venv/bin/python tests/fuzz/fuzz_construction.py --again FILE    run what was found once more

Needs atheris (`pip install --group fuzz`), and says so where it is absent. What must hold of any
input: no exception; a request that reads is written back as it was in both forms; it can be
checked, compared with another and shown beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz import runner  # noqa: E402 - found by the path above

# What the mutator may put in: the words of the language, and values at its limits.
NAMES = (
    *("type", "id", "block_size", "sub_volumes", "read_only_parent", "blocks_per_extent"),
    *("extent_count", "opts", "gen", "url", "path", "target", "lossy", "flush_timeout", "key"),
    *("cert_pem", "key_pem", "root_cert_pem", "control", "read_only"),
)
VALUES = (
    *("volume", "region", "file", "null", "true", "false", "4096", "512", "32768", "-1", "1e39"),
    *("18446744073709551615", "4294967296", "127.0.0.1:8810", "[::1]:1", "node-1.example:65535"),
    *("http://a/1", "-----BEGIN", "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"),
    "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
)
# An input that begins with this byte is a message, any other is JSON text.
MESSAGE_MARK = b"\x00"


class Judge:
    """Everything that is done with a request before anything is built from it."""

    def __init__(self) -> None:
        from controlplane.cli import tree_diff
        from controlplane.core.construction_check import check
        from stairlib.model.construction_diff import compare
        from stairlib.wire import construction as wire
        from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest

        self._check, self._compare, self._wire, self._tree = check, compare, wire, tree_diff
        self._message = VolumeConstructionRequest
        disks = json.loads((ROOT / "examples" / "crucible-disks.json").read_text())
        self._other = wire.from_object(disks[0]["volume_construction_request"])

    def __call__(self, data: bytes) -> None:
        """One input; AssertionError where something does not hold."""
        parsed = self._read(data)
        if parsed is None:
            return
        assert (parsed.construction is None) == bool(parsed.violations)
        if parsed.draft is not None:
            report = self._check(parsed.draft, unread=parsed.unread)
            assert not {one.field for one in report.violations} & parsed.unread
            assert report.valid == (not report.violations)
        if parsed.construction is not None:
            self._use(parsed.construction)

    def _read(self, data: bytes):
        if not data.startswith(MESSAGE_MARK):
            return self._wire.parse_json(data)
        from google.protobuf.message import DecodeError

        try:
            return self._wire.parse_message(self._message.FromString(data[1:]))
        except DecodeError:
            return None

    def _use(self, construction) -> None:
        wire = self._wire
        assert wire.from_json(wire.to_json(construction)) == construction
        assert wire.from_message(wire.to_message(construction)) == construction
        there = self._compare(self._other, construction)
        back = self._compare(construction, self._other)
        for old, new, found in (
            (self._other, construction, there),
            (construction, self._other, back),
        ):
            assert bool(found.changed) == (found.outcome.name == "REPLACE")
            self._tree.rows(old, new, [one.field for one in found.violations])


def seeds() -> Iterator[bytes]:
    """The documented requests, and every request of the case tables, in both forms."""
    from stairlib.wire.construction import parse_object, to_message
    from tests.unit.stairlib.model.case_trees import Table

    unit = ROOT / "tests" / "unit"
    compared = unit / "stairlib" / "model" / "data"
    values = [json.loads((ROOT / "examples" / "replace.json").read_text())["vcr"]]
    checks = Table(unit / "controlplane" / "core" / "data" / "construction_check.json")
    values += [checks.edited(one["base"], one.get("set", {})) for one in checks.cases]
    table = Table(*sorted(compared.glob("construction_compare*.json")))
    values += [table.edited(one["base"], one.get("replacement", {})) for one in table.cases]
    for value in values:
        yield json.dumps(value).encode()
        construction = parse_object(value).construction
        if construction is not None:
            yield MESSAGE_MARK + to_message(construction).SerializeToString()


TARGET = runner.Target(
    script=Path(__file__),
    purpose=__doc__,
    make=Judge,
    seeds=seeds,
    words=(
        *(f'"{word}"' for word in NAMES + VALUES),
        *(f'"\\"{name}\\":"' for name in NAMES),
    ),
    instrumented=("stairlib", "controlplane.core", "controlplane.cli"),
)

if __name__ == "__main__":
    sys.exit(runner.main(TARGET))
