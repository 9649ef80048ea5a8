"""Where the data connection's unix socket is put."""

import uuid
from pathlib import Path

import pytest

from downstaird.data_server import socket_path

REGION = uuid.UUID(int=7)


@pytest.mark.parametrize("runtime", ["/run/user/0", "/run/" + "deep/" * 40])
def test_a_socket_path_fits_whatever_the_runtime_directory_is(monkeypatch, runtime):
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    path = socket_path(Path("/var/lib/" + "x" * 200), REGION)
    assert len(str(path)) <= 107
    assert str(path).startswith(runtime) == (runtime == "/run/user/0")


def test_two_regions_never_share_a_socket(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    one = socket_path(Path("/a"), REGION)
    assert one == socket_path(Path("/a"), REGION)
    assert one != socket_path(Path("/b"), REGION)
    assert one != socket_path(Path("/a"), uuid.UUID(int=8))
