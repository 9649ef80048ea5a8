"""A cluster's certificate authority: one folder with its key, and the certificates it has issued.

    ca.pem ca.key              the authority
    NAME.pem NAME.key          of each daemon and person, as `access.certificate_caller` reads them
    NAME.token, tokens         see `stairlib.rpc.tokens`

Invariants: a private key is readable by its owner alone from its first byte on; a file is replaced
as a whole, the key before its certificate, so that a daemon that reads meanwhile finds two that do
not fit and keeps what it had; no error, log or `repr` holds a key.

Errors: StateError AUTHORITY_EXISTS, NO_AUTHORITY, CERTIFICATE_EXISTS, NO_CERTIFICATE and
CANNOT_WRITE; InvalidRequestError for names that are none.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.rpc.access import URI_SCHEME, Role, certificate_caller
from stairlib.rpc.tokens import checked_name

AUTHORITY_NAME: Final = "ca"
TOKENS: Final = "tokens"
# A daemon is asked on its own host too: by health checks, by hand.
OWN_HOST: Final = ("localhost", "127.0.0.1", "::1")
# A clock that is a little behind must not refuse what was just issued.
_SLACK: Final = timedelta(minutes=5)
_DNS_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Wish:
    """A certificate to be issued: for whom, in which role, and by what a daemon is reached."""

    name: str
    role: Role
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is there; the authority's own has no role."""

    name: str
    role: Role | None
    hosts: tuple[str, ...]
    last: datetime
    certificate: Path
    key: Path


class Authority:
    """The authority in one folder, made by `found` once."""

    def __init__(self, folder: Path) -> None:
        """StateError NO_AUTHORITY when there is none, or none that can be used."""
        self.folder = folder
        self._certificate = _read_certificate(self.root)
        try:
            content = _path(folder, AUTHORITY_NAME, "key").read_bytes()
            key = serialization.load_pem_private_key(content, None)
        except (OSError, ValueError, TypeError):
            key = None
        if self._certificate is None or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StateError(
                f"{folder} has no authority that can issue (ca.pem, ca.key): `stairwell pki init` "
                "makes one, --dir names another folder",
                reason="NO_AUTHORITY",
            )
        self._key = key

    @property
    def root(self) -> Path:
        """The certificate that everybody is given."""
        return _path(self.folder, AUTHORITY_NAME, "pem")

    @classmethod
    def found(cls, folder: Path, days: int) -> Authority:
        """A new authority. StateError AUTHORITY_EXISTS where there is one, or part of one: all that
        it has issued would be worth nothing."""
        paths = [_path(folder, AUTHORITY_NAME, ending) for ending in ("pem", "key")]
        if any(path.exists() for path in paths):
            raise StateError(
                f"{folder} has an authority already: `stairwell pki issue` adds a certificate, "
                "`stairwell pki renew` replaces those that run out",
                reason="AUTHORITY_EXISTS",
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritten(folder, error) from error
        key = ec.generate_private_key(ec.SECP256R1())
        name = _subject(f"stairwell authority {os.urandom(4).hex()}")
        certificate = (
            _builder(name, name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        _write_pair(folder, AUTHORITY_NAME, key, certificate)
        return cls(folder)

    def issue(self, wish: Wish, days: int, *, replace: bool = False) -> Issued:
        """A certificate with a key of its own; one that is there stays, unless `replace`:
        StateError CERTIFICATE_EXISTS."""
        check_wish(wish)
        path = _path(self.folder, wish.name, "pem")
        if path.exists() and not replace:
            raise StateError(
                f"{path} is there already: `stairwell pki renew {wish.name}` replaces it by one "
                "like it, --replace by this one",
                reason="CERTIFICATE_EXISTS",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        _write_pair(self.folder, wish.name, key, self._signed(wish, key.public_key(), days))
        return _issued(path)

    def renew(self, name: str, days: int) -> Issued:
        """One like that of this name, with a new key, valid from now on. StateError NO_CERTIFICATE
        when there is none."""
        old = next((one for one in self.issued() if one.name == name and one.role), None)
        if old is None or old.role is None:
            raise StateError(
                f"{self.folder} has no certificate {name}.pem with a role: `stairwell pki issue` "
                "makes one, `stairwell pki show` lists what is there",
                reason="NO_CERTIFICATE",
            )
        return self.issue(Wish(name, old.role, old.hosts), days, replace=True)

    def issued(self) -> list[Issued]:
        """All certificates of the folder, the authority's first; what is none is passed over."""
        found = []
        for path in self.folder.glob("*.pem"):
            with contextlib.suppress(StateError):
                found.append(_issued(path))
        return sorted(found, key=lambda one: (one.role is not None, one.name))

    def _signed(self, wish: Wish, key: ec.EllipticCurvePublicKey, days: int) -> x509.Certificate:
        assert self._certificate is not None
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if wish.role is Role.DAEMON:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names: list[x509.GeneralName] = [_general(host) for host in _hosts(wish)]
        names.append(x509.UniformResourceIdentifier(f"{URI_SCHEME}://{wish.role}/{wish.name}"))
        builder = _builder(_subject(wish.name), self._certificate.subject, key, days)
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


def check_wish(wish: Wish) -> None:
    """InvalidRequestError for a name or a host that is none, and for a person with a host."""
    checked_name(wish.name)
    if wish.name == AUTHORITY_NAME:
        raise InvalidRequestError("ca is the authority's own name: choose another one")
    if wish.hosts and wish.role is not Role.DAEMON:
        raise InvalidRequestError(f"{wish.name} is a {wish.role}: only a daemon has hosts")
    for host in wish.hosts:
        _general(host)


def _hosts(wish: Wish) -> list[str]:
    if wish.role is not Role.DAEMON:
        return []
    return list(dict.fromkeys((*wish.hosts, *OWN_HOST)))


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host) or ".." in host:
        raise InvalidRequestError(
            f"{host!r} is no host: give a name or an address, without a port", reason="BAD_HOST"
        )
    return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _path(folder: Path, name: str, ending: str) -> Path:
    return folder / f"{name}.{ending}"


def _write_pair(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_file(_path(folder, name, "key"), secret, 0o600)
    shown = certificate.public_bytes(serialization.Encoding.PEM)
    write_file(_path(folder, name, "pem"), shown, 0o644)


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Puts a file in place as a whole. StateError CANNOT_WRITE."""
    try:
        handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, path)
        except BaseException:
            Path(made).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> StateError:
    return StateError(f"cannot write {path}: {error.strerror}", reason="CANNOT_WRITE")


def _read_certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _issued(path: Path) -> Issued:
    certificate = _read_certificate(path)
    if certificate is None:
        raise StateError(f"{path} holds no certificate", reason="NO_CERTIFICATE")
    uris: list[str] = []
    hosts: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts += names.get_values_for_type(x509.DNSName)
        hosts += map(str, names.get_values_for_type(x509.IPAddress))
    role = None
    if path.stem != AUTHORITY_NAME:
        roles = certificate_caller(uris, hosts, path.stem).roles if uris else frozenset()
        role = next(iter(sorted(roles)), None)
    last = certificate.not_valid_after_utc
    return Issued(path.stem, role, tuple(hosts), last, path, path.with_suffix(".key"))


def default_wishes(hosts: Sequence[str]) -> list[Wish]:
    """What the smallest cluster needs, all of it on `hosts`: three kinds of daemons, two people."""
    daemons = ("controlplane", "vmmd", "downstairs")
    return [
        *(Wish(name, Role.DAEMON, tuple(hosts)) for name in daemons),
        Wish("operator", Role.OPERATOR),
        Wish("viewer", Role.VIEWER),
    ]
