"""Secrets at rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.store.place import Place
from controlplane.store.sealing import KEY_BYTES, KEY_FILE, load_sealer
from stairlib.model.errors import DataError


def test_what_is_sealed_opens_again_and_only_here(tmp_path: Path) -> None:
    first = load_sealer(Place(tmp_path))
    sealed = first.seal("secret")
    assert b"secret" not in sealed
    assert first.seal("secret") != sealed
    assert load_sealer(Place(tmp_path)).open(sealed) == "secret"
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as caught:
        load_sealer(Place(tmp_path / "other")).open(sealed)
    assert caught.value.reason == "WRONG_SECRET_KEY"
    for damaged in (sealed[:-1] + bytes([sealed[-1] ^ 1]), b"", b"short"):
        with pytest.raises(DataError):
            first.open(damaged)


def test_the_key_file_is_the_owner_s_alone(tmp_path: Path) -> None:
    load_sealer(Place(tmp_path))
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == KEY_BYTES
    path.chmod(0o644)
    with pytest.raises(DataError) as caught:
        load_sealer(Place(tmp_path))
    assert caught.value.reason == "SECRET_KEY_EXPOSED"
    assert "chmod 600" in caught.value.message


def test_half_a_key_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    path.touch(mode=0o600)
    with pytest.raises(DataError) as caught:
        load_sealer(Place(tmp_path))
    assert caught.value.reason == "WRONG_SECRET_KEY"


def test_a_draft_left_by_a_crash_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "secret.new").write_bytes(b"half")
    load_sealer(Place(tmp_path))
    assert not (tmp_path / "secret.new").exists()
