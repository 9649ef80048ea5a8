"""Coverage-guided fuzzing of the judge: any bytes as a construction request, in JSON or protobuf.

    make fuzz                                  a minute, with a corpus made from examples and tables
    .venv/bin/python tests/fuzz/fuzz_construction.py --seconds 600 --keep DIR
    .venv/bin/python tests/fuzz/fuzz_construction.py --again FILE    run what was found once more

Needs atheris (`pip install --group fuzz`), and says so where it is absent. What must hold of any
input: no exception; a request that reads is written back as it was in both forms; it can be
checked, compared with another and shown beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

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
LONGEST_INPUT = 1 << 14
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


def write_corpus(directory: Path) -> None:
    """The seeds as files, and the dictionary beside them."""
    corpus = directory / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(dict.fromkeys(seeds())):
        (corpus / f"seed-{number}").write_bytes(seed)
    lines = [f'"{word}"' for word in NAMES + VALUES] + [f'"\\"{name}\\":"' for name in NAMES]
    (directory / "words.dict").write_text("\n".join(lines) + "\n")


def fuzz(directory: Path, seconds: int) -> None:
    """Never returns: the fuzzer ends the process, with a code that is not 0 when it found one."""
    import atheris

    write_corpus(directory)
    with atheris.instrument_imports(include=["stairlib", "controlplane.core", "controlplane.cli"]):
        for name in [
            one for one in sys.modules if one.split(".")[0] in ("stairlib", "controlplane")
        ]:
            del sys.modules[name]
        judge = Judge()
    atheris.Setup(
        [
            sys.argv[0],
            str(directory / "corpus"),
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST_INPUT}",
            f"-dict={directory / 'words.dict'}",
            f"-artifact_prefix={directory}/",
            "-timeout=10",
            "-print_final_stats=1",
            "-verbosity=0",
        ],
        judge,
    )
    atheris.Fuzz()


def main() -> int:
    """One command; leaves nothing behind but what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--keep", type=Path, help="keep corpus and findings here")
    parser.add_argument("--again", type=Path, help="run one input that was found; no fuzzing")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.again:
        Judge()(options.again.read_bytes())
        print("nothing is wrong with it")
        return 0
    if options.inside:
        fuzz(options.inside, options.seconds)
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not installed; `.venv/bin/pip install --group fuzz` installs it")
        return 0
    with contextlib.ExitStack() as stack:
        directory = options.keep
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--seconds", str(options.seconds)]
        ended = subprocess.run([*command, "--inside", str(directory)], check=False)
        for found in [*directory.glob("crash-*"), *directory.glob("timeout-*")]:
            kept = Path.cwd() / found.name
            kept.write_bytes(found.read_bytes())
            print(f"found: {kept}; see it again with --again {kept}")
        return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
