"""The three files of TLS: what is refused, in which words, and that none of their content shows."""

from __future__ import annotations

import os
import ssl
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID as Use

from stairlib.model.construction import RegionOptions
from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.rpc import tls
from stairlib.rpc.tls import FLAGS, TlsFiles, region_tls, server_names, tls_files
from tests.certificates import EXPIRED, NOT_YET, Authority

FIELDS = ("opts.cert_pem", "opts.key_pem", "opts.root_cert_pem")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def refusal(files: TlsFiles) -> StateError:
    with pytest.raises(StateError) as caught:
        files.check()
    assert caught.value.reason == "TLS_FILE"
    assert caught.value.__cause__ is None
    return caught.value


def test_good_files_serve_both_sides(authority: Authority) -> None:
    files = authority.issue("one", "downstairs0")
    files.check()
    server, client = files.server(), files.client()
    assert server.context.verify_mode is ssl.CERT_REQUIRED
    assert client.context.check_hostname
    # What is lent to each connection is made of the files; the lender itself has none.
    lent = server.context.files.now().context
    assert not server.context.get_ca_certs()
    for context in (server.context, lent, client.context, client.probe):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    for context in (lent, client.context, client.probe):
        assert context.get_ca_certs()


@pytest.mark.parametrize("which", ["cert", "key", "root"])
@pytest.mark.parametrize(
    "trouble", ["missing", "loop", "directory", "pipe", "no PEM", "large", "NUL"]
)
def test_a_file_that_will_not_do_is_named(
    authority: Authority, tmp_path: Path, which: str, trouble: str
) -> None:
    path = tmp_path / "bad"
    expected = "cannot be read on this host"
    if trouble == "directory":
        path.mkdir()
        expected = "is not a file"
    elif trouble == "loop":
        path.symlink_to(path)
    elif trouble == "pipe":
        os.mkfifo(path)
        expected = "is not a file"
    elif trouble == "no PEM":
        path.write_text("very secret words")
        expected = "does not hold"
    elif trouble == "large":
        path.write_bytes(bytes(2 << 20))
        expected = "has more than"
    text = str(path) + ("\0" if trouble == "NUL" else "")
    files = replace(authority.issue("one"), **{which: text}, names=FIELDS)
    error = refusal(files)
    field = FIELDS[("cert", "key", "root").index(which)]
    assert error.message.startswith(f"{field}: {path}")
    assert expected in error.message
    assert "very secret" not in error.message
    assert error.metadata == {"field": field, "file": text}


def test_a_certificate_s_time_must_have_come_and_not_have_gone(authority: Authority) -> None:
    assert "expired on" in refusal(authority.issue("old", period=EXPIRED)).message
    assert "not valid before" in refusal(authority.issue("new", period=NOT_YET)).message


def test_a_certificate_must_be_for_its_use(authority: Authority) -> None:
    """A daemon is a client too: it asks the source of a repair."""
    both = authority.issue("both", uses=[Use.CLIENT_AUTH, Use.SERVER_AUTH])
    both.check()
    both.check(server=True)
    client = authority.issue("client", uses=[Use.CLIENT_AUTH])
    client.check()
    with pytest.raises(StateError, match="clientAuth and serverAuth, and is not for serverAuth"):
        client.check(server=True)
    server = authority.issue("server", uses=[Use.SERVER_AUTH])
    assert "must be for clientAuth" in refusal(server).message
    with pytest.raises(StateError, match="is not for clientAuth"):
        server.server()


def test_the_key_must_be_the_certificate_s(authority: Authority) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    error = refusal(replace(one, key=two.key))
    assert f"{two.key} is not the key of the certificate in {one.cert}" in error.message


def test_a_key_with_a_passphrase_is_refused_and_none_is_asked_for(authority: Authority) -> None:
    error = refusal(authority.issue("locked", passphrase=b"open sesame"))
    assert "without a passphrase" in error.message


def test_pem_text_in_place_of_a_path_is_shown_nowhere(authority: Authority) -> None:
    files = authority.issue("one")
    pasted = replace(files, key=Path(files.key).read_text())
    error = refusal(pasted)
    assert "--key-pem holds PEM text" in error.message
    line = Path(files.key).read_text().splitlines()[1]
    assert line not in str(error)
    assert line not in str(error.metadata)
    assert line not in repr(pasted)


def test_a_path_of_any_length_makes_a_short_error(authority: Authority) -> None:
    error = refusal(replace(authority.issue("one"), cert="/" + 5000 * "x"))
    assert "File name too long" in error.message
    assert len(error.message) < 400


def test_several_roots_may_be_given_while_one_follows_the_other(
    authority: Authority, tmp_path: Path
) -> None:
    files = authority.issue("one")
    other = Authority(tmp_path / "next")
    bundle = tmp_path / "both.pem"
    bundle.write_bytes(Path(files.root).read_bytes() + other.root.read_bytes())
    assert len(replace(files, root=str(bundle)).client().context.get_ca_certs()) == 2


def test_all_three_or_none() -> None:
    assert tls_files(None, None, None, FLAGS) is None
    assert tls_files("c", "k", "r", FLAGS) == TlsFiles("c", "k", "r")
    with pytest.raises(InvalidRequestError) as caught:
        tls_files("c", None, "", FLAGS)
    assert caught.value.reason == "TLS_INCOMPLETE"
    assert [each.field for each in caught.value.violations] == ["--key-pem", "--root-cert-pem"]
    assert "--cert-pem, --key-pem, --root-cert-pem" in caught.value.message
    # Three empty paths are a mistake, not a wish for plain text.
    with pytest.raises(InvalidRequestError):
        tls_files("", "", "", FLAGS)


def test_the_files_of_a_request_are_named_as_its_fields() -> None:
    plain = RegionOptions(uuid.uuid4(), ())
    assert region_tls(plain) is None
    options = replace(plain, cert_pem="c", key_pem="k", root_cert_pem="r")
    assert region_tls(options) == TlsFiles("c", "k", "r", FIELDS)


def test_names_a_certificate_may_be_for() -> None:
    assert server_names("10.0.0.1:8810", 1) == ("downstairs1", "10.0.0.1")
    assert server_names("[::1]:8810", 0) == ("downstairs0", "::1")
    assert server_names("store-a:8810") == ("downstairs0", "downstairs1", "downstairs2", "store-a")


@pytest.mark.parametrize(
    ("shown", "wanted", "fits"),
    [
        ([("DNS", "downstairs0")], "downstairs0", True),
        ([("DNS", "Store-A.example")], "store-a.example", True),
        ([("DNS", "*.example")], "store-a.example", True),
        ([("DNS", "*.example")], "rack.store.example", False),
        ([("DNS", "*.example")], "example", False),
        ([("DNS", "x"), ("DNS", "downstairs1")], "downstairs1", True),
        ([("IP Address", "10.0.0.1")], "10.0.0.1", True),
        ([("IP Address", "0:0:0:0:0:0:0:1\n")], "::1", True),
        ([("DNS", "10.0.0.1")], "10.0.0.1", False),
        ([("IP Address", "10.0.0.1")], "downstairs0", False),
        ([], "downstairs0", False),
    ],
)
def test_matching_of_names(shown: list[tuple[str, str]], wanted: str, fits: bool) -> None:
    assert tls._is_for({"subjectAltName": tuple(shown)}, wanted) is fits
