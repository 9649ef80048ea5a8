"""What the client shows, and what it refuses to send."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.cli.credentials import Credentials
from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.rpc.access import Role
from stairlib.rpc.authority import Authority, Wish

OWN, FAR = "127.0.0.1:55400", "cp.example:55400"


@pytest.fixture
def pki(tmp_path: Path) -> Authority:
    return Authority.found(tmp_path / "pki", 10)


def test_plain_text_goes_to_this_host_alone() -> None:
    assert Credentials().peer(OWN) is None
    with pytest.raises(InvalidRequestError) as refused:
        Credentials().peer(FAR)
    assert refused.value.reason == "PLAIN_TEXT"
    assert Credentials(insecure=True).peer(FAR) is None


def test_a_certificate_or_a_token_is_for_the_host_that_is_called(
    pki: Authority, tmp_path: Path
) -> None:
    made = pki.issue(Wish("ann", Role.VIEWER), 5)
    paths = (str(pki.root), str(made.certificate), str(made.key))
    peer = Credentials(*paths).peer(FAR)
    assert peer is not None
    assert peer.server_name == "cp.example"
    token = tmp_path / "token"
    token.write_text("stw_abc\n")
    shown = Credentials(str(pki.root), token_file=str(token))
    peer = shown.peer(FAR)
    assert peer is not None
    assert peer.server_name == "cp.example"
    assert "stw_abc" not in repr(shown) + repr(peer)
    assert shown.files() is None


def test_part_of_it_never_means_plain_text(pki: Authority, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("stw_abc")
    for credentials in (
        Credentials(ca=str(pki.root)),
        Credentials(cert="c", key="k"),
        Credentials(token_file=str(token)),
        Credentials(token_file=str(token), insecure=True),
        Credentials(str(pki.root), "c", "k", str(token)),
    ):
        for address in (OWN, FAR):
            with pytest.raises(InvalidRequestError):
                credentials.peer(address)


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff", b"x" * 5000])
def test_a_file_that_holds_no_token_is_named_and_not_shown(
    pki: Authority, tmp_path: Path, content: bytes
) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    with pytest.raises(StateError) as refused:
        Credentials(str(pki.root), token_file=str(token)).peer(OWN)
    assert refused.value.reason == "TOKEN_FILE"
    assert "words" not in refused.value.message
    with pytest.raises(StateError):
        Credentials(str(tmp_path / "none.pem"), token_file=str(token)).peer(OWN)
