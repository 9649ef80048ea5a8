"""What `stairwell pki` makes: certificates that the daemons take, keys that nobody else reads."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.rpc.access import Role
from stairlib.rpc.authority import OWN_HOST, Authority, Wish, default_wishes
from stairlib.rpc.tls import TlsFiles


@pytest.fixture
def pki(tmp_path: Path) -> Authority:
    return Authority.found(tmp_path / "pki", 100)


def test_what_is_issued_does_for_its_role(pki: Authority) -> None:
    for wish in default_wishes(()):
        made = pki.issue(wish, 10)
        files = TlsFiles(str(made.certificate), str(made.key), str(pki.root))
        files.check(server=wish.role is Role.DAEMON)
        assert (made.name, made.role) == (wish.name, wish.role)
        left = made.last - datetime.now(UTC)
        assert timedelta(days=9) < left <= timedelta(days=10)
    person = pki.issue(Wish("ann", Role.VIEWER), 10)
    with pytest.raises(StateError, match="serverAuth"):
        TlsFiles(str(person.certificate), str(person.key), str(pki.root)).check(server=True)


def test_keys_are_their_owner_s_alone(pki: Authority) -> None:
    pki.issue(Wish("ds1", Role.DAEMON), 10)
    keys = list(pki.folder.glob("*.key"))
    assert len(keys) == 2
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        body = key.read_text().splitlines()[1]
        assert body not in repr(pki)
    assert stat.S_IMODE(pki.folder.stat().st_mode) == 0o700
    # Nothing half-written stays behind.
    assert not [path for path in pki.folder.iterdir() if path.name.startswith(".")]


def test_hosts_and_renewal(pki: Authority) -> None:
    first = pki.issue(Wish("ds1", Role.DAEMON, ("ds1.example", "10.0.0.1", "[fd00::1]")), 10)
    assert set(first.hosts) == {"ds1.example", "10.0.0.1", "fd00::1", *OWN_HOST}
    old_key, old = first.key.read_bytes(), first.certificate.read_bytes()
    again = pki.renew("ds1", 20)
    assert set(again.hosts) == set(first.hosts)
    assert again.role is Role.DAEMON
    assert again.last > first.last
    assert first.key.read_bytes() != old_key
    serials = {x509.load_pem_x509_certificate(pem).serial_number
               for pem in (old, again.certificate.read_bytes())}  # fmt: skip
    assert len(serials) == 2
    TlsFiles(str(again.certificate), str(again.key), str(pki.root)).check(server=True)


def test_one_authority_signs_nothing_under_another_s_name(pki: Authority, tmp_path: Path) -> None:
    other = Authority.found(tmp_path / "other", 100)
    root = x509.load_pem_x509_certificate(pki.root.read_bytes())
    stranger = x509.load_pem_x509_certificate(other.root.read_bytes())
    assert root.subject != stranger.subject
    limits = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert limits.ca
    assert limits.path_length == 0
    leaf = pki.issue(Wish("a", Role.VIEWER), 1).certificate.read_bytes()
    made = x509.load_pem_x509_certificate(leaf)
    made.verify_directly_issued_by(root)
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_an_authority_is_never_replaced(pki: Authority) -> None:
    before = pki.root.read_bytes()
    with pytest.raises(StateError) as refused:
        Authority.found(pki.folder, 10)
    assert refused.value.reason == "AUTHORITY_EXISTS"
    pki.root.unlink()
    # A part of one is one.
    with pytest.raises(StateError):
        Authority.found(pki.folder, 10)
    with pytest.raises(StateError) as none:
        Authority(pki.folder)
    assert none.value.reason == "NO_AUTHORITY"
    pki.root.write_bytes(before)
    (pki.folder / "ca.key").write_text("-----BEGIN PRIVATE KEY-----\nno\n")
    with pytest.raises(StateError) as spoilt:
        Authority(pki.folder)
    assert "BEGIN" not in spoilt.value.message


@pytest.mark.parametrize(
    "wish",
    [
        Wish("", Role.VIEWER), Wish("a/b", Role.VIEWER), Wish("../x", Role.VIEWER),
        Wish(".x", Role.VIEWER), Wish("a b", Role.VIEWER), Wish("x" * 65, Role.VIEWER),
        Wish("ca", Role.DAEMON), Wish("ann", Role.VIEWER, ("host",)),
        Wish("d", Role.DAEMON, ("host:8810",)), Wish("d", Role.DAEMON, ("a..b",)),
        Wish("d", Role.DAEMON, ("",)), Wish("d", Role.DAEMON, ("https://x",)),
    ],
)  # fmt: skip
def test_names_that_are_none(pki: Authority, wish: Wish) -> None:
    before = sorted(pki.folder.iterdir())
    with pytest.raises(InvalidRequestError):
        pki.issue(wish, 10)
    assert sorted(pki.folder.iterdir()) == before


def test_one_that_is_there_stays_unless_it_is_said(pki: Authority) -> None:
    first = pki.issue(Wish("ds1", Role.DAEMON), 10).certificate.read_bytes()
    with pytest.raises(StateError) as refused:
        pki.issue(Wish("ds1", Role.DAEMON), 10)
    assert refused.value.reason == "CERTIFICATE_EXISTS"
    assert (pki.folder / "ds1.pem").read_bytes() == first
    pki.issue(Wish("ds1", Role.DAEMON), 10, replace=True)
    assert (pki.folder / "ds1.pem").read_bytes() != first
    with pytest.raises(StateError) as missing:
        pki.renew("ds2", 10)
    assert missing.value.reason == "NO_CERTIFICATE"


def test_the_list_passes_over_what_is_no_certificate(pki: Authority) -> None:
    pki.issue(Wish("zoe", Role.VIEWER), 10)
    pki.issue(Wish("ds1", Role.DAEMON), 10)
    (pki.folder / "note.pem").write_text("not one")
    assert [(one.name, one.role) for one in pki.issued()] == [
        ("ca", None), ("ds1", Role.DAEMON), ("zoe", Role.VIEWER),
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError) as refused:
        Authority.found(tmp_path / "file" / "pki", 10)
    assert refused.value.reason == "CANNOT_WRITE"
