"""docs/vcr.md is run: every request in it is what the page says it is, every command prints what
the page shows, and its tables name every field and every rule there is."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.cli.main import main
from controlplane.core import construction_check
from controlplane.core.construction_check import check
from stairlib.model import construction_diff
from stairlib.model.construction_diff import compare
from stairlib.wire import construction as wire
from stairlib.wire import construction_reader
from tests.contract.judge_plane import judge_plane

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "vcr.md").read_text()
# `name.json` is valid:   `name.json` is not valid:   `name.json` against `other.json`: verdict
EXAMPLE = re.compile(
    r"^`(?P<name>[\w-]+\.json)` (?:is (?P<valid>valid|not valid):"
    r"|against `(?P<other>[\w-]+\.json)`: (?P<verdict>[a-z ]+))\n\n```json\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    name: str
    text: str
    valid: bool
    other: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Command:
    line: str
    output: str
    exit_code: int


def examples() -> dict[str, Example]:
    found = {}
    for match in EXAMPLE.finditer(PAGE):
        name, text = match["name"], match["text"]
        assert name not in found
        valid = match["valid"] != "not valid"
        verdict = (match["verdict"] or "").replace(" ", "_")
        found[name] = Example(name, text, valid, match["other"] or "", verdict)
    return found


def commands() -> Iterator[Command]:
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        first, *output, last = block.splitlines()
        assert first.startswith("$ stairwell ")
        code = re.fullmatch(r"# exit (\d)", last)
        assert code, f"{first}: the last line says the exit code"
        yield Command(first[2:], "\n".join(output), int(code[1]))


EXAMPLES = examples()
COMMANDS = list(commands())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with judge_plane() as found:
        yield found


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_a_request_is_what_the_page_says(example: Example) -> None:
    parsed = wire.parse_json(example.text)
    valid = parsed.construction is not None and check(parsed.construction).valid
    assert valid is example.valid
    if example.other:
        original = wire.from_json(EXAMPLES[example.other].text)
        assert compare(original, parsed.require()).outcome.value == example.verdict


@pytest.mark.parametrize("command", COMMANDS, ids=[one.line for one in COMMANDS])
def test_a_command_prints_what_the_page_shows(
    command: Command,
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for example in EXAMPLES.values():
        (tmp_path / example.name).write_text(example.text)
    monkeypatch.chdir(tmp_path)
    code = main(["-p", str(port), *shlex.split(command.line)[1:]])
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines()]
    assert "\n".join(lines) == command.output
    assert (code, err) == (command.exit_code, "")


def test_every_block_is_run() -> None:
    assert len(EXAMPLES) == PAGE.count("```json") > 8
    assert len(COMMANDS) == PAGE.count("```console") > 7
    assert {one.exit_code for one in COMMANDS} == {0, 1, 3}


def test_the_tables_name_every_field_and_every_type() -> None:
    kinds = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (`[^|]+`) \|$", PAGE, re.MULTILINE))
    # What a region needs: its neighbours are taken from the reader's own words.
    for kind, fields in kinds.items():
        parsed = wire.parse_object({"type": kind})
        required = {v.field for v in parsed.violations}
        named = set(re.findall(r"`(\w+)`", fields))
        assert required <= named
        assert named - required <= {"read_only_parent"}
    assert set(kinds) == {"volume", "region", "file", "url"}
    described = set(re.findall(r"^\| `(\w+)` \| [^|]+ \| (?:yes|no) \|", PAGE, re.MULTILINE))
    options = set(json.loads(wire.to_json(wire.from_json(EXAMPLES["tls.json"].text)))["opts"])
    assert described == options | {"type", "opts"} | {
        name for fields in kinds.values() for name in re.findall(r"`(\w+)`", fields)
    }


def test_the_tables_name_every_rule() -> None:
    modules = (construction_check, construction_diff, construction_reader, wire)
    text = "".join(Path(module.__file__ or "").read_text() for module in modules)
    rules = set(re.findall(r'"((?:[A-Z]+_)+[A-Z]+|EMPTY|REQUIRED)"', text))
    assert rules - set(re.findall(r"`([A-Z_]+)`", PAGE)) == set()
