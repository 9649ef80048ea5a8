"""The files that a host's own configuration names, and the rules it gives to its machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from stairlib.model.errors import InvalidRequestError
from vmmd.config import confined, load_server_config
from vmmd.core.server_config import ServerConfig


def configuration(folder: Path, directories: str) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    path = folder / "server.toml"
    path.write_text(
        f'bootrom = "firmware/code.fd"\nfile_directories = {directories}\n'
        '[block_dev.a]\ntype = "file"\npath = "images/a.raw"\n'
    )
    return path


def test_firmware_and_media_are_confined_too(tmp_path: Path) -> None:
    config = load_server_config(configuration(tmp_path, '["images", "firmware"]'))
    assert config.file_directories == (str(tmp_path / "images"), str(tmp_path / "firmware"))
    with pytest.raises(InvalidRequestError, match=r"bootrom: .*code\.fd must be in one of"):
        load_server_config(configuration(tmp_path, '["images"]'))
    with pytest.raises(InvalidRequestError, match=r"block_dev\.a\.path: .*a\.raw must be in"):
        load_server_config(configuration(tmp_path, '["firmware"]'))
    (tmp_path / "images" / "a.raw").symlink_to("/etc/passwd")
    with pytest.raises(InvalidRequestError, match=r"a\.raw must be in"):
        load_server_config(configuration(tmp_path, '["images", "firmware"]'))


def test_where_others_reach_the_host_no_file_is_taken_for_granted() -> None:
    own = confined(ServerConfig(), reachable=False, plain_text=False)
    assert own.file_directories is None
    assert confined(ServerConfig(), reachable=True, plain_text=False).file_directories == ()
    named = ServerConfig(file_directories=("/a",))
    for reachable in (False, True):
        assert confined(named, reachable=reachable, plain_text=True) == ServerConfig(
            file_directories=("/a",), plain_text=True
        )
