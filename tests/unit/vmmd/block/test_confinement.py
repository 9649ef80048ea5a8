"""What requests may name on a host, and which members they may name in plain text."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from stairlib.model.construction import (
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    UrlSpec,
    VolumeSpec,
)
from stairlib.model.errors import InvalidRequestError
from stairlib.model.geometry import Geometry
from vmmd.block.confinement import Confinement, is_inside

LOOPBACK = ("127.0.0.1:1", "[::1]:2", "localhost:3")


def volume(*subs: Construction, parent: Construction | None = None) -> VolumeSpec:
    return VolumeSpec(uuid.uuid4(), 512, tuple(subs), parent)


def region(*targets: str, secure: bool = False) -> RegionSpec:
    paths = dict.fromkeys(("cert_pem", "key_pem", "root_cert_pem"), "/x") if secure else {}
    return RegionSpec(Geometry(512, 8, 8), RegionOptions(uuid.uuid4(), targets, **paths), 1)


def file(path: Path | str) -> FileSpec:
    return FileSpec(uuid.uuid4(), 512, str(path))


def refusal(confinement: Confinement, construction: Construction) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        confinement.check(construction)
    for violation in caught.value.violations:
        assert violation.field in caught.value.message
    return caught.value


def test_files_inside_and_outside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "images", tmp_path / "images2"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "disk").touch()
    (inside / "link").symlink_to(outside / "disk")
    (outside / "link").symlink_to(inside / "disk")
    (inside / "up").symlink_to(tmp_path)
    confinement = Confinement((str(inside),))
    for good in ("disk", "none yet", "sub/../disk"):
        confinement.check(volume(file(inside / good)))
    confinement.check(file(outside / "link"))
    for bad in (
        outside / "disk", inside / "link", inside / "up" / "images2" / "disk",
        inside / ".." / "images2" / "disk", "/dev/mem", "/etc/shadow", "relative",
    ):  # fmt: skip
        error = refusal(confinement, volume(file(inside / "disk"), parent=file(bad)))
        assert error.reason == "FILE_OUTSIDE"
        assert [each.field for each in error.violations] == ["read_only_parent.path"]
        assert f"must be in {inside}" in error.message


def test_no_directory_and_any_directory() -> None:
    error = refusal(Confinement(()), volume(file("/a"), file("/b")))
    assert [each.field for each in error.violations] == [
        "sub_volumes[0].path", "sub_volumes[1].path",
    ]  # fmt: skip
    assert "names no directory" in error.message
    Confinement(None).check(volume(file("/a")))
    Confinement(()).check(volume(UrlSpec(uuid.uuid4(), 512, "https://x.example/y")))
    assert not is_inside("/a\0b", ["/"])


def test_plain_text_stays_on_this_host_unless_it_is_said() -> None:
    confinement = Confinement()
    confinement.check(volume(region(*LOOPBACK)))
    far = ("127.0.0.1:1", "10.0.0.1:2", "ds3:3")
    error = refusal(confinement, volume(region(*LOOPBACK), parent=volume(region(*far))))
    assert error.reason == "PLAIN_TEXT"
    assert [each.field for each in error.violations] == [
        f"read_only_parent.sub_volumes[0].opts.target[{slot}]" for slot in (1, 2)
    ]
    assert "--insecure" in error.message
    assert "cert_pem" in error.message
    confinement.check(volume(region(*far, secure=True)))
    Confinement(plain_text=True).check(volume(region(*far)))
