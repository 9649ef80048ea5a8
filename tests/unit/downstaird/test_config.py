"""Checked command-line values, and the parser around them."""

import uuid

import pytest

from downstaird.__main__ import main
from downstaird.config import checked_geometry, checked_uuid
from stairlib.model.errors import InvalidRequestError


def test_every_flag_of_a_geometry_that_is_wrong_is_named():
    assert checked_geometry(4096, 16384, 128).total_bytes == 8 << 30
    with pytest.raises(InvalidRequestError) as caught:
        checked_geometry(1536, 0, 0)
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["--block-size", "--extent-size", "--extent-count"]


@pytest.mark.parametrize("text", [None, "", "x", "1234"])
def test_a_uuid_is_needed(text):
    assert checked_uuid(str(uuid.UUID(int=1)), "--uuid") == uuid.UUID(int=1)
    with pytest.raises(InvalidRequestError, match="--uuid"):
        checked_uuid(text, "--uuid")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data-port", "-1"], "--data-port"),
        (["--latency", "-1"], "--latency"),
        (["-p", "65536"], "--port"),
        (["--create"], "--uuid"),
        (["--cert-pem", "c"], "--key-pem is missing"),
        (["--cert-pem", "c", "--key-pem", "k"], "--root-cert-pem is missing"),
        (
            ["--cert-pem", "/none", "--key-pem", "/none", "--root-cert-pem", "/none"],
            "--cert-pem: /none cannot be read",
        ),
    ],
)
def test_run_refuses_wrong_flags_in_a_sentence(tmp_path, capsys, flags, says):
    assert main(["run", "-d", str(tmp_path / "r"), *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("downstaird: ")
    assert says in error
    assert not (tmp_path / "r").exists()


def test_create_info_verify_and_dump_agree(tmp_path, capsys):
    region, other = str(tmp_path / "r"), str(tmp_path / "other")
    flags = ["--block-size", "512", "--extent-size", "8", "--extent-count", "4"]
    for place in (region, other):
        assert main(["create", "-d", place, "-u", str(uuid.uuid4()), *flags, "--encrypted"]) == 0
    assert main(["info", "-d", region]) == 0
    assert main(["verify", "-d", region]) == 0
    assert main(["dump", "-d", region, "-d", other]) == 0
    shown = capsys.readouterr().out
    assert "encrypted" in shown
    assert "0 blocks (0 MiB) read, 0 bad" in shown
    assert "0 of 4 extents differ" in shown


def test_regions_of_other_geometry_are_not_compared(tmp_path, capsys):
    for name, count in (("a", "4"), ("b", "5")):
        main(
            ["create", "-d", str(tmp_path / name), "-u", str(uuid.uuid4()), "--extent-count", count]
        )
    assert main(["dump", "-d", str(tmp_path / "a"), "-d", str(tmp_path / "b")]) == 1
    assert "cannot be compared" in capsys.readouterr().err
