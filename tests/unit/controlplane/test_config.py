"""The command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.config import DEFAULT_ADDRESS, DEFAULT_VMMD, TLS_FLAGS, default_data, parse


def test_defaults() -> None:
    config = parse(["run"], {"XDG_STATE_HOME": "/state"})
    assert (config.address, config.vmmd) == (DEFAULT_ADDRESS, DEFAULT_VMMD)
    assert config.data == Path("/state/stairwell/controlplane")
    assert (config.log_level, config.log_json) == ("info", None)


def test_the_document_s_command_line() -> None:
    line = "run 127.0.0.1:0 --vmmd 127.0.0.1:9 --data /d --log-level debug --log-format json"
    config = parse(line.split(), {})
    assert (config.address, config.vmmd, config.data) == ("127.0.0.1:0", "127.0.0.1:9", Path("/d"))
    assert (config.log_level, config.log_json) == ("debug", True)


def test_the_files_to_show_the_downstairs() -> None:
    assert parse(["run"], {}).downstairs_tls == (None, None, None)
    words = [word for flag, path in zip(TLS_FLAGS, "ckr", strict=True) for word in (flag, path)]
    assert parse(["run", *words], {}).downstairs_tls == ("c", "k", "r")


@pytest.mark.parametrize("state", ["", "relative"])
def test_where_state_goes_without_xdg(state: str) -> None:
    expected = Path.home() / ".local" / "state" / "stairwell" / "controlplane"
    assert default_data({"XDG_STATE_HOME": state}) == expected


@pytest.mark.parametrize("line", ["", "walk", "run --vmmmd x", "run a b", "run --log-level loud"])
def test_nonsense_shows_the_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(line.split(), {})
    assert caught.value.code == 2
    assert "usage: controlplane" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["run", "--help"], {"XDG_STATE_HOME": "/state"})
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "127.0.0.1:55400",
        "--vmmd",
        "/state/stairwell/controlplane",
        "SIGTERM",
        "grpcurl",
        *TLS_FLAGS,
    ):
        assert part in text
