"""Checked command-line values, and the parser around them."""

import dataclasses
import json
import uuid

import pytest

from downstaird.__main__ import main
from downstaird.config import CreateOptions, checked_geometry, checked_uuid
from downstaird.core.engine import Ownership
from downstaird.regions import check_matches, create_region, open_region, opened
from stairlib.model.cipher import AES_256_GCM, CIPHERS, DEFAULT_CIPHER
from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.model.geometry import Geometry


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
    assert "encrypted with aes-256-gcm-siv" in shown
    assert "0 blocks (0 MiB) read, 0 bad" in shown
    assert "0 of 4 extents differ" in shown


@pytest.mark.parametrize("cipher", CIPHERS)
def test_the_cipher_is_recorded_and_shown(tmp_path, capsys, cipher):
    region = str(tmp_path / "r")
    flags = ["-u", str(uuid.uuid4()), "--encrypted", "--cipher", cipher]
    assert main(["create", "-d", region, *flags]) == 0
    assert f"encrypted with {cipher}" in capsys.readouterr().out
    assert main(["info", "-d", region, "--output", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["encrypted"], facts["cipher"], facts["format_version"]) == (True, cipher, 3)


def test_a_cipher_alone_and_one_that_does_not_exist_are_refused(tmp_path, capsys):
    flags = ["create", "-d", str(tmp_path / "r"), "-u", str(uuid.uuid4()), "--cipher"]
    assert main([*flags, "aes-256-gcm"]) == 1
    assert "add --encrypted" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*flags, "rot13", "--encrypted"])
    assert "aes-256-gcm-siv" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_region_that_is_there_must_have_the_cipher(tmp_path):
    options = CreateOptions(tmp_path / "r", uuid.uuid4(), Geometry(512, 8, 4), AES_256_GCM)
    create_region(options)
    with opened(tmp_path / "r") as engine:
        check_matches(engine, options)
        with pytest.raises(StateError) as differs:
            check_matches(engine, dataclasses.replace(options, cipher=DEFAULT_CIPHER))
    assert differs.value.reason == "REGION_DIFFERS"
    assert "encrypted with aes-256-gcm, not" in differs.value.message


def test_regions_of_other_geometry_are_not_compared(tmp_path, capsys):
    for name, count in (("a", "4"), ("b", "5")):
        main(
            ["create", "-d", str(tmp_path / name), "-u", str(uuid.uuid4()), "--extent-count", count]
        )
    assert main(["dump", "-d", str(tmp_path / "a"), "-d", str(tmp_path / "b")]) == 1
    assert "cannot be compared" in capsys.readouterr().err


def test_a_key_can_be_forgotten_and_nothing_else_is(tmp_path, capsys):
    region = tmp_path / "r"
    create_region(CreateOptions(region, uuid.uuid4(), Geometry(512, 8, 4), AES_256_GCM))
    flags = ["-d", str(region)]
    assert main(["forget-key", *flags]) == 0
    assert "has no key recorded" in capsys.readouterr().out
    engine = open_region(region)
    owned = Ownership(uuid.uuid4(), uuid.uuid4(), 7, key_check=bytes(range(16)))
    engine.promote(owned)
    assert main(["forget-key", *flags]) == 1
    assert "in use" in capsys.readouterr().err
    engine.close()
    assert main(["info", *flags, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["key_recorded"] is True
    assert main(["forget-key", *flags]) == 0
    assert "has forgotten" in capsys.readouterr().out
    with opened(region) as engine:
        assert engine.ownership == dataclasses.replace(owned, key_check=b"")
    assert main(["info", *flags, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["key_recorded"] is False
