"""`downstaird`'s commands on regions at rest, as users start them: what they print, what they exit
with, that looking changes nothing, and what bad input is told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import xxhash

from downstaird.__main__ import main
from downstaird.arguments import parser
from downstaird.regions import open_region
from stairlib.model.context import plain_contexts

pytestmark = pytest.mark.processes

COMMAND = (sys.executable, "-m", "downstaird")
GEOMETRY = ("--block-size", "4096", "--extent-size", "64", "--extent-count", "4")
BLOCK = 4096
BLOCKS = 256
SECONDS = 60


def downstaird(*arguments, data=None, **more):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        input=data,
        timeout=SECONDS,
        check=False,
        **more,
    )


def told(done) -> str:
    """What a refused command says: one sentence, no traceback, nothing on stdout."""
    error = done.stderr.decode()
    assert done.returncode == 1, error
    # `run` says the name it was started by.
    assert error.startswith(("downstaird: ", "__main__.py: "))
    assert "Traceback" not in error
    assert done.stdout == b""
    return error


def create(directory, *more):
    status, _ = call("create", "-d", directory, "-u", uuid.uuid4(), *GEOMETRY, *more)
    assert status == 0
    return directory


def call(*arguments) -> tuple[int, str]:
    """The same in this process, which is quicker: exit status and stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(list(map(str, arguments)))
    return status, out.getvalue()


def put(directory, first, data, number=2):
    engine = open_region(directory)
    engine.write(first, plain_contexts(data, BLOCK), data)
    work = engine.begin_flush(number, 0)
    work.run()
    engine.finish_flush(work, None)
    engine.close()


def picture(directory) -> dict[str, tuple[int, str]]:
    """Every file's time of change and content; `data` is sparse and large, so its start."""
    found = {}
    for path in sorted(Path(directory).iterdir()):
        with path.open("rb") as file:
            content = hashlib.sha256(file.read(8 << 20)).hexdigest()
        found[path.name] = (path.stat().st_mtime_ns, content)
    return found


@pytest.fixture
def image(tmp_path):
    """A file with a hole, a run of zeros and an end that is no whole block."""
    data = bytearray(random.Random(4).randbytes(70 * BLOCK + 100))
    data[10 * BLOCK : 40 * BLOCK] = bytes(30 * BLOCK)
    path = tmp_path / "image"
    path.write_bytes(data)
    return path


def test_an_image_goes_in_and_comes_out(tmp_path, image) -> None:
    data = image.read_bytes()
    region = create(tmp_path / "r", "--import-path", image)
    facts = json.loads(call("info", "-d", region, "--output", "json")[1])
    assert (facts["extent_count"], facts["newest_flush"], facts["owner"]) == (4, 1, None)
    # 41 blocks; the zeros take none.
    assert facts["stored_bytes"] < 50 * BLOCK + (1 << 20)
    status, verified = call("verify", "-d", region, "--output", "json", "-t", 2)
    assert status == 0
    assert json.loads(verified)["blocks_read"] == 41
    out = tmp_path / "out"
    done = downstaird("export", "-d", region, "-e", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == data.ljust(BLOCKS * BLOCK, b"\0")
    assert out.stat().st_blocks * 512 < 100 * BLOCK
    part = downstaird("export", "-d", region, "-e", "-", "--skip", 60, "--count", 11)
    assert part.stdout == data[60 * BLOCK :].ljust(11 * BLOCK, b"\0")
    assert b"blocks 60 to 70" in part.stderr


def test_an_import_by_pipe_writes_over_what_is_there(tmp_path, image) -> None:
    region = create(tmp_path / "r")
    for data in (b"\xff" * (50 * BLOCK), image.read_bytes()):
        done = downstaird("import", "-d", region, "-i", "-", data=data)
        assert done.returncode == 0, done.stderr
        assert b"durable" in done.stdout
    exported = downstaird("export", "-d", region, "-e", "-").stdout
    assert exported == image.read_bytes().ljust(BLOCKS * BLOCK, b"\0")


def test_an_import_after_a_snapshot_has_a_flush_of_its_own(tmp_path, image) -> None:
    region = create(tmp_path / "r")
    assert call("import", "-d", region, "-i", image)[0] == 0
    assert call("snapshot", "create", "-d", region, "monday")[0] == 0
    [facts] = json.loads(call("snapshot", "list", "-d", region, "--output", "json")[1])
    assert call("import", "-d", region, "-i", image)[0] == 0
    snapshot = f"{facts['generation']}:{facts['flush']}"
    found = json.loads(call("info", "-d", region, "--since", snapshot, "--output", "json")[1])
    assert found["newest_flush"] == facts["flush"] + 1
    assert (found["changed_extents"], found["changed"]) == (2, "0-1")
    now = f"{found['newest_generation']}:{found['newest_flush']}"
    assert downstaird("info", "-d", region, "--since", now).stdout.split()[-2:] == [
        b"changed",
        b"none",
    ]
    assert downstaird("info", "-d", region, "--since", "monday").returncode == 2


def test_a_region_grows_with_what_is_imported_into_it(tmp_path, image) -> None:
    region = tmp_path / "r"
    flags = ("--block-size", "512", "--extent-size", "100", "--extent-count", "2")
    done = downstaird("create", "-d", region, "-u", uuid.uuid4(), *flags, "-i", image)
    assert done.returncode == 0, done.stderr
    exported = downstaird("export", "-d", region, "-e", "-").stdout
    assert exported == image.read_bytes().ljust(-(-70 * BLOCK // 51200) * 51200, b"\0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("import", "-d", "R", "-i", "MISSING"), "missing cannot be read"),
        (("import", "-d", "R", "-i", "LARGE"), "create a larger one"),
        (("import", "-d", "SECRET", "-i", "IMAGE"), "only its upstairs has the key"),
        (("import", "-d", "EMPTY", "-i", "IMAGE"), "not a region directory"),
        (("export", "-d", "R", "-e", "-", "--skip", "257"), "within the region's 256 blocks"),
        (("export", "-d", "R", "-e", "-", "--skip", "9", "--count", "248"), "--count 248"),
        (("export", "-d", "R", "-e", "NOWHERE/x"), "cannot be written"),
        (("dump", "-d", "R", "-e", "4"), "--extent 4 is not one of the region's 4 extents"),
        (("dump", "-d", "R", "-b", "256"), "--block 256"),
        (("dump", "-d", "R", "-d", "R", "-d", "R", "-d", "R"), "up to 3 times"),
        (("dump", "-d", "R", "-d", "OTHER"), "cannot be compared"),
        (("run", "-d", "R", "--read-errors", "1.5"), "--read-errors must be a probability"),
        (("create", "-d", "NEW", "-u", "ID", "-i", "MISSING"), "missing cannot be read"),
        (("create", "-d", "NEW", "-u", "ID", "-i", "IMAGE", "--encrypted"), "not encrypted"),
        (("create", "-d", "NEW", "-u", "ID", "--extent-size", "2097152"), "--extent-size"),
        (("create", "-d", "NEW", "-u", "ID", "--block-size", "1536"), "--block-size: 1536"),
        (("create", "-d", "NEW", "-u", "ID", "--extent-count", "-1"), "--extent-count"),
    ],
)
def test_bad_input_is_a_sentence_and_changes_nothing(tmp_path, image, arguments, says) -> None:
    region = create(tmp_path / "r")
    (tmp_path / "empty").mkdir()
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, BLOCKS * BLOCK + 1)
    if "OTHER" in arguments:
        other = ("--block-size", "512", "--extent-size", "8")
        call("create", "-d", tmp_path / "other", "-u", uuid.uuid4(), *other)
    if "SECRET" in arguments:
        create(tmp_path / "secret", "--encrypted")
    names = {
        "R": region, "EMPTY": tmp_path / "empty", "IMAGE": image, "LARGE": large,
        "ID": uuid.uuid4(),
        "OTHER": tmp_path / "other", "SECRET": tmp_path / "secret", "NEW": tmp_path / "new",
        "MISSING": tmp_path / "missing", "NOWHERE/x": tmp_path / "nowhere" / "x",
    }  # fmt: skip
    before = picture(region)
    assert says in told(downstaird(*(names.get(word, word) for word in arguments)))
    assert picture(region) == before
    assert not (tmp_path / "new").exists()


def test_looking_at_a_region_does_not_change_it(tmp_path, image) -> None:
    regions = [create(tmp_path / name, "-i", image) for name in "abc"]
    put(regions[2], 5, b"\x07" * BLOCK)
    # Damage too is for a look alone.
    with (regions[1] / "state-0").open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff")
    before = [picture(region) for region in regions]
    flags = [word for region in regions for word in ("-d", region)]
    for arguments in (
        ("dump", *flags), ("dump", *flags, "-e", 0, "-o"), ("dump", *flags, "-b", 5),
        ("verify", "-d", regions[1]), ("info", "-d", regions[1]),
        ("export", "-d", regions[0], "-e", tmp_path / "out"),
    ):  # fmt: skip
        call(*arguments)
    assert [picture(region) for region in regions] == before


def test_dump_shows_which_blocks_differ(tmp_path, image) -> None:
    regions = [create(tmp_path / name, "-i", image) for name in "abc"]
    put(regions[2], 5, b"\x07" * BLOCK)
    flags = [word for region in regions for word in ("-d", region)]
    status, extents = call("dump", *flags, "--output", "json")
    assert status == 1
    answer = json.loads(extents)
    assert answer["different"] == 1
    assert [line["differs"] for line in answer["extents"]] == [True, False, False, False]
    status, blocks = call("dump", *flags, "-e", 0, "-o", "--output", "json")
    assert status == 1
    [line] = json.loads(blocks)["blocks"]
    assert (line["block"], line["data"], line["context"]) == (5, ["A", "A", "B"], ["A", "A", "B"])
    one = call("dump", *flags, "-b", 5)[1]
    assert one.count("<---") == 6
    status, same = call("dump", *flags[:4], "-e", 0)
    assert status == 0
    assert "0 of 64 blocks differ" in same


def test_a_damaged_block_is_named_by_verify_and_stops_an_export(tmp_path, image) -> None:
    region = create(tmp_path / "r", "-i", image)
    engine = open_region(region, read_only=True)
    place = engine.chunks.durable[0] * engine.layout.chunk_bytes
    logged = engine.overlay.logged[0]
    inside = list(logged.addresses).index(3) if 3 in logged.addresses else None
    engine.close()
    name, at = ("data", place + 3 * BLOCK)
    if inside is not None:
        name, at = f"log-{logged.log}", logged.data_offset + inside * BLOCK
        # Proof that the record had been flushed: what makes it damage.
        put(region, 200, bytes(BLOCK - 1) + b"x", 3)
    with (region / name).open("r+b") as file:
        file.seek(int(at))
        file.write(b"\xde\xad")
    verified = downstaird("verify", "-d", region)
    assert verified.returncode == 1
    assert name in verified.stdout.decode() or "block 3:" in verified.stdout.decode()
    error = downstaird("export", "-d", region, "-e", "-").stderr.decode()
    assert "extent 0 is damaged" in error or "block 3 does not match" in error


def test_a_region_of_a_newer_version_is_refused(tmp_path) -> None:
    region = create(tmp_path / "r")
    path = region / "region.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    fields["format_version"] = 99
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["checksum"] = f"{xxhash.xxh3_64_intdigest(text.encode()):016x}"
    path.write_text(json.dumps(fields))
    for command in ("run", "verify", "info", "dump"):
        error = told(downstaird(command, "-d", region))
        assert "version 99" in error
        assert str(path) in error


def test_a_region_of_another_user_is_refused_with_advice(tmp_path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    region = create(tmp_path / "r")
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.stat().st_uid == 0 and path != Path("/tmp"):
            path.chmod(0o755)
    for path in region.iterdir():
        path.chmod(0o600)
    script = (
        "import os, sys; os.setgid(65534); os.setuid(65534);"
        "from downstaird.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    # Run once before the user changes: who that is may not read the program's folder.
    script = "from downstaird.__main__ import main; main(['info', '-d', '/']);" + script
    done = subprocess.run(
        [sys.executable, "-c", script, "info", "-d", str(region)],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "run as the user that owns the region" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_each_command_teaches(capsys) -> None:
    top = parser().format_help()
    for command in ("create", "run", "verify", "dump", "export", "import", "clone", "info"):
        assert command in top
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "downstaird " + command in capsys.readouterr().out


def test_snapshots_of_a_region_at_rest(tmp_path) -> None:
    region = create(tmp_path / "r")
    old, new = random.Random(1).randbytes(128 * BLOCK), random.Random(2).randbytes(128 * BLOCK)
    put(region, 0, old)
    assert call("snapshot", "list", "-d", region) == (0, "no snapshots\n")
    assert call("snapshot", "create", "-d", region, "monday")[0] == 0
    put(region, 0, new, number=9)
    [facts] = json.loads(call("snapshot", "list", "-d", region, "--output", "json")[1])
    assert (facts["name"], facts["flush"], facts["settled"]) == ("monday", 3, True)
    assert facts["unique_bytes"] == 128 * BLOCK
    assert "monday" in call("snapshot", "list", "-d", region)[1]
    again = downstaird("snapshot", "create", "-d", region, "monday")
    assert "already" in told(again)
    wanted = uuid.uuid4()
    copy = tmp_path / "copy"
    arguments = ("snapshot", "clone", "-d", region, "monday", "--to", copy, "-u", wanted)
    status, text = call(*arguments)
    assert status == 0
    # Never both, and never a silent copy.
    assert ("0.5 MiB shared" in text) != ("0.5 MiB copied" in text)
    assert ("copied because" in text) == ("0.5 MiB copied" in text)
    assert "already" in told(downstaird(*arguments))
    assert json.loads(call("info", "-d", copy, "--output", "json")[1])["region"] == str(wanted)
    for place, data in ((copy, old), (region, new)):
        out = tmp_path / "out"
        assert call("export", "-d", place, "-e", out, "--count", 128)[0] == 0
        assert out.read_bytes() == data
        assert call("verify", "-d", place)[0] == 0
    status, text = call("snapshot", "delete", "-d", region, "monday")
    assert (status, text) == (0, "snapshot monday deleted, 0.5 MiB freed\n")
    assert "no snapshot 'monday'" in told(downstaird("snapshot", "delete", "-d", region, "monday"))
    assert "no snapshot" in told(downstaird("run", "-d", region, "--snapshot", "monday", "-p", 0))
