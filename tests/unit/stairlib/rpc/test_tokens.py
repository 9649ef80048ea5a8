"""The file of tokens: what is in it, what is refused, and that a token is nowhere in it."""

from __future__ import annotations

import stat
from datetime import date
from pathlib import Path

import pytest

from stairlib.model.errors import StateError, UnauthenticatedError
from stairlib.rpc.access import Role
from stairlib.rpc.tokens import TokenBook, add_line, digest_of, new_token

TODAY = date(2026, 11, 26)


def test_a_token_is_in_the_file_as_its_digest_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    tokens = {}
    for name, days in (("ann", 5), ("bob", None)):
        tokens[name], line = new_token(name, Role.OPERATOR, days, TODAY)
        add_line(path, line)
        assert tokens[name] not in line
        assert digest_of(tokens[name]) in line
    assert tokens["ann"] != tokens["bob"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert " 2026-12-01\n" in path.read_text()
    book = TokenBook(path)
    caller = book.caller(f"Bearer {tokens['bob']}")
    assert (caller.name, caller.roles) == ("bob", {Role.OPERATOR})


@pytest.mark.parametrize(
    "line",
    [
        "operator ann", "root ann {} -", "daemon ann {} -", "operator a/n {} -",
        "operator ann {} tomorrow", "operator ann {}0 -", "operator ann XYZ -",
        "operator ann {} - more",
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_refused_and_not_shown(tmp_path: Path, line: str) -> None:
    token, _ = new_token("ann", Role.VIEWER, None, TODAY)
    path = tmp_path / "tokens"
    path.write_text(f"# heading\n\n{line.format(digest_of(token))}\n")
    with pytest.raises(StateError) as refused:
        TokenBook(path)
    assert refused.value.reason == "TOKEN_FILE"
    assert "line 3" in refused.value.message
    assert digest_of(token) not in refused.value.message


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * ((1 << 20) + 1)])
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(StateError):
        TokenBook(path)
    with pytest.raises(StateError):
        TokenBook(tmp_path / "missing")
    with pytest.raises(StateError):
        TokenBook(tmp_path)


@pytest.mark.parametrize("shown", [None, "", "Bearer ", "Bearer", "stw_x", "Basic stw_x"])
def test_what_is_no_bearer_token(tmp_path: Path, shown: str | None) -> None:
    path = tmp_path / "tokens"
    path.touch()
    with pytest.raises(UnauthenticatedError) as refused:
        TokenBook(path).caller(shown)
    assert refused.value.reason == "TOKEN_NEEDED"
