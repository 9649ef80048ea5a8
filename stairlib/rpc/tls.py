"""Mutual TLS between the programs and the downstairs: three PEM files, and what is made of them.

Both sides show a certificate that the other's root certificate has signed. Invariants: TLS 1.2 at
least; a peer without a certificate gets nowhere; a file's content never reaches an error, a log or
a `repr`, and neither does a path that is really PEM text.

Errors: InvalidRequestError TLS_INCOMPLETE and StateError TLS_FILE name the file as the user did;
UnavailableError TLS_NOT_SPOKEN, TLS_NEEDED, TLS_UNTRUSTED, TLS_NAME and TLS_REFUSED say what is
wrong between two daemons, and on which side to put it right.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import grpc

from stairlib.model.construction import RegionOptions
from stairlib.model.errors import (
    FieldViolation,
    InvalidRequestError,
    StateError,
    UnavailableError,
)
from stairlib.rpc.access import SLOT_NAMES, Caller, certificate_caller
from stairlib.rpc.errors import translated
from stairlib.rpc.renewal import Renewed
from stairlib.runtime.addresses import parse_address

if TYPE_CHECKING:
    from cryptography import x509

_T = TypeVar("_T")
# A daemon on the network ends a handshake within milliseconds; one that hangs is given up.
HANDSHAKE_SECONDS: Final = 3.0
# Certificates take a few KiB; a path that leads to something else must not fill the memory.
_FILE_BYTES_MAX: Final = 1 << 20
_PATH_SHOWN_MAX: Final = 256
# gRPC servers close a connection that does not ask for HTTP/2.
_HTTP2: Final = "h2"
_FIELDS: Final = ("opts.cert_pem", "opts.key_pem", "opts.root_cert_pem")
FLAGS: Final = ("--cert-pem", "--key-pem", "--root-cert-pem")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of a certificate, its private key, and the certificate that the other side's must be
    signed by. `names` is how the user named the three, for errors."""

    cert: str = field(repr=False)
    key: str = field(repr=False)
    root: str = field(repr=False)
    names: tuple[str, str, str] = FLAGS

    def check(self, *, server: bool = False) -> None:
        """StateError TLS_FILE unless all three can be read, fit together, are valid today and may
        be used for this: as a client, or as a `server` that is also a client of its like."""
        self._read(server=server)

    def client(self) -> ClientTls:
        """What a client needs, from the files as they are now. StateError TLS_FILE."""
        key, cert, root = self._read(server=False)
        probe = self._context(ssl.PROTOCOL_TLS_CLIENT)
        probe.check_hostname = False
        probe.set_alpn_protocols([_HTTP2])
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        return ClientTls(grpc.ssl_channel_credentials(root, key, cert), context, probe)

    def server(self) -> ServerTls:
        """What a server needs; it turns away clients without a certificate. Each connection gets
        what the files hold by then. StateError TLS_FILE."""
        return ServerTls(Renewed("certificates", (self.cert, self.key, self.root), self._served))

    def _served(self) -> _Served:
        key, cert, root = self._read(server=True)
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        make = grpc.ssl_server_certificate_configuration
        people = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        people.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            people.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except (OSError, ValueError):
            _refuse(self.cert, self.names[0], "changed while it was read; try again")
        return _Served(make([(key, cert)], root), make([(key, cert)]), context, people)

    def _read(self, *, server: bool) -> tuple[bytes, bytes, bytes]:
        """(key, certificate chain, roots) in PEM, checked."""
        cert_name, key_name, root_name = self.names
        cert = _content(self.cert, cert_name)
        key = _content(self.key, key_name)
        root = _content(self.root, root_name)
        leaf = _certificates(cert, self.cert, cert_name)[0]
        _check_period(leaf, self.cert, cert_name)
        _check_use(leaf, self.cert, cert_name, server=server)
        _check_key(key, leaf, self, key_name)
        roots = _certificates(root, self.root, root_name)
        if len(roots) == 1:
            _check_period(roots[0], self.root, root_name)
        return key, cert, root

    def _context(self, side: int) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # The passphrase is never asked for: `_read` has refused a key that has one.
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
            context.load_verify_locations(self.root)
        except (OSError, ValueError):
            # Checked a moment ago: somebody is just writing them.
            _refuse(self.cert, self.names[0], "changed while it was read; try again")
        return context


@dataclass(frozen=True, slots=True)
class _Served:
    """What the files of a server come to: for clients with certificates, and for those who show
    tokens instead."""

    mutual: grpc.ServerCertificateConfiguration
    own: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext
    people: ssl.SSLContext


class _RenewedContext(ssl.SSLContext):
    """Lends each connection the context of the files as they are now.

    Event loops ask their context for nothing but `wrap_bio`. Loading other files into one context
    would only ever add authorities, never let go of one.
    """

    files: Renewed[_Served]

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """One end of a connection."""
        return self.files.now().context.wrap_bio(*arguments, **named)


class _RenewedPeopleContext(_RenewedContext):
    """The same, for those who show no certificate."""

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """One end of a connection."""
        return self.files.now().people.wrap_bio(*arguments, **named)


class ServerTls:
    """For gRPC and for the data connection of one daemon."""

    def __init__(self, files: Renewed[_Served]) -> None:
        self._files = files
        self.context = _RenewedContext(ssl.PROTOCOL_TLS_SERVER)
        # It holds no certificate: used in any other way than by `wrap_bio`, it shakes no hands.
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.files = files
        self.people_context = _RenewedPeopleContext(ssl.PROTOCOL_TLS_SERVER)
        self.people_context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.people_context.files = files

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """For a port that takes clients with certificates."""
        return self._dynamic(lambda served: served.mutual, mutual=True)

    @property
    def token_credentials(self) -> grpc.ServerCredentials:
        """For a port whose clients show no certificate."""
        return self._dynamic(lambda served: served.own, mutual=False)

    def _dynamic(
        self, part: Callable[[_Served], grpc.ServerCertificateConfiguration], *, mutual: bool
    ) -> grpc.ServerCredentials:
        given = part(self._files.now())

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # Asked before each handshake; None is "as before".
            nonlocal given
            found = part(self._files.now())
            if found is given:
                return None
            given = found
            return found

        # Typed as if it had to answer each time; None is what gRPC documents.
        return grpc.dynamic_ssl_server_credentials(given, changed, mutual)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Not yet bound to a peer: `reach` does that. `context` checks the peer's name, `probe` is for
    finding it out."""

    credentials: grpc.ChannelCredentials
    context: ssl.SSLContext
    probe: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of daemon is called in errors (`start`: in "start ... with"), the flags that
    give it certificates, and whether its certificate may be for the name of a slot."""

    words: str
    flags: tuple[str, str, str]
    start: str
    slots: bool = False


DOWNSTAIRS: Final = Kind("the downstairs", FLAGS, "that downstairs", slots=True)


@dataclass(frozen=True, slots=True)
class PeerTls:
    """How one daemon is reached: its certificate must be for `server_name`."""

    credentials: grpc.ChannelCredentials
    context: ssl.SSLContext
    server_name: str


def certificate_caller_of(connection: ssl.SSLObject) -> Caller:
    """Who has shaken hands, by the certificate that was shown; RefusedError NO_ROLE."""
    shown: dict[str, Any] = connection.getpeercert() or {}
    names: list[tuple[str, str]] = list(shown.get("subjectAltName", ()))
    subject = dict(pair for part in shown.get("subject", ()) for pair in part)
    return certificate_caller(
        (name for kind, name in names if kind == "URI"),
        (name for kind, name in names if kind == "DNS"),
        subject.get("commonName", ""),
    )


def tls_files(
    cert: str | None, key: str | None, root: str | None, names: tuple[str, str, str]
) -> TlsFiles | None:
    """The files, or None where none is given; InvalidRequestError when some are missing or empty:
    that must not mean plain text."""
    if cert and key and root:
        return TlsFiles(cert, key, root, names)
    if cert is None and key is None and root is None:
        return None
    given = dict(zip(names, (cert, key, root), strict=True))
    missing = [name for name, path in given.items() if not path]
    rule = "is missing: TLS needs all of " + ", ".join(names)
    raise InvalidRequestError(
        "; ".join(f"{name} {rule}" for name in missing),
        tuple(FieldViolation(name, rule, "TLS_INCOMPLETE") for name in missing),
        reason="TLS_INCOMPLETE",
    )


def region_tls(options: RegionOptions) -> TlsFiles | None:
    """The files that a region's request names, or None; InvalidRequestError when given in part."""
    return tls_files(options.cert_pem, options.key_pem, options.root_cert_pem, _FIELDS)


def server_names(address: str, slot: int | None = None) -> tuple[str, ...]:
    """What the certificate of the downstairs at `address` may be for; any slot's name where the
    slot is not known."""
    host = parse_address(address).host
    slots = SLOT_NAMES if slot is None else SLOT_NAMES[slot : slot + 1]
    return (*slots, host)


async def reach(
    address: str, files: TlsFiles, slot: int | None = None, kind: Kind = DOWNSTAIRS
) -> PeerTls:
    """How to talk to the downstairs, or another `kind` of daemon, at `address`, proven by a
    handshake with its gRPC server.

    gRPC checks one name and says little when a handshake fails; this finds out which of the names
    the certificate has, and raises an UnavailableError that says what is wrong.
    """
    client = files.client()
    certificate = await _shown(address, client.probe, files, kind)
    names = server_names(address, slot) if kind.slots else (parse_address(address).host,)
    for name in names:
        if _is_for(certificate, name):
            return PeerTls(client.credentials, client.context, name)
    raise _wrong(
        "TLS_NAME",
        address,
        f"the certificate of {kind.words} at {address} is for "
        f"{_listed(_names_of(certificate)) or 'no name'}: give it one that is for {_listed(names)}",
    )


async def speaks_tls(address: str) -> bool:
    """Whether what listens at `address` answers a TLS handshake; False when nothing does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            _reader, writer = await _connected(address, context)
        writer.transport.abort()
        return True
    return False


async def why(
    address: str, error: UnavailableError, files: TlsFiles | None, kind: Kind, remedy: str
) -> UnavailableError:
    """The failure of a call, or what a handshake finds to be wrong with the certificates of one
    side; `remedy` is for who asks in plain text where TLS is wanted."""
    if error.reason != UnavailableError.reason or parse_address(address).is_unix:
        return error
    if files is None:
        return await explained(address, error, remedy, kind)
    try:
        await reach(address, files, kind=kind)
    except UnavailableError as found:
        return found if found.reason.startswith("TLS_") else error
    return error


@contextlib.asynccontextmanager
async def saying_why(
    peer: str, find: Callable[[UnavailableError], Awaitable[UnavailableError]]
) -> AsyncIterator[None]:
    """Failures of calls to `peer` as domain errors; of one that cannot be reached, what `find`
    finds to be wrong with certificates."""
    try:
        with translated(peer):
            yield
    except UnavailableError as error:
        found = await find(error)
        if found is error:
            raise
        raise found from error


async def explained(
    address: str, error: UnavailableError, remedy: str, kind: Kind = DOWNSTAIRS
) -> UnavailableError:
    """The failure of a call without TLS; another one where the daemon wants TLS, with `remedy` as
    what to do."""
    if error.reason == "DEADLINE_EXCEEDED" or not await speaks_tls(address):
        return error
    return _wrong("TLS_NEEDED", address, f"{kind.words} at {address} speaks TLS only: {remedy}")


# ---- a handshake


async def _connected(
    address: str, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    peer = parse_address(address)
    return await asyncio.open_connection(peer.host, peer.port, ssl=context, server_hostname="")


async def _shown(
    address: str, context: ssl.SSLContext, files: TlsFiles, kind: Kind
) -> dict[str, Any]:
    """The certificate shown at `address`, as `ssl` tells it, once ours was accepted too."""
    shaken = False
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            reader, writer = await _connected(address, context)
            shaken = True
            try:
                # A server judges our certificate when our side of the handshake is over. A gRPC
                # server speaks first: an end before its first byte means that it said no.
                accepted = await reader.read(1)
                certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise UnavailableError(
            f"{address} did not end a TLS handshake in time: does {kind.words} run there?",
            reason="DEADLINE_EXCEEDED",
            target=address,
        ) from None
    except OSError as error:
        raise (
            _refused(address, files, kind) if shaken else _failed(address, error, files, kind)
        ) from error
    if not accepted:
        raise _refused(address, files, kind)
    return certificate


def _failed(address: str, error: OSError, files: TlsFiles, kind: Kind) -> UnavailableError:
    """Why there was no handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _wrong(
            "TLS_UNTRUSTED",
            address,
            f"the certificate of {kind.words} at {address} is not accepted "
            f"({error.verify_message}): it must be valid, and signed by {files.names[2]}",
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        if "ALERT" in (error.reason or ""):
            return _refused(address, files, kind)
        return _wrong(
            "TLS_NOT_SPOKEN",
            address,
            f"what listens at {address} does not speak TLS: start {kind.start} with "
            f"{', '.join(kind.flags)}, or leave out {', '.join(files.names)} here",
        )
    return UnavailableError(
        f"cannot reach {address}: {error.strerror or error}; is it running?", target=address
    )


def _refused(address: str, files: TlsFiles, kind: Kind) -> UnavailableError:
    return _wrong(
        "TLS_REFUSED",
        address,
        f"{kind.words} at {address} does not accept our certificate: {files.names[0]} must be "
        f"valid, and signed by what that daemon has as {kind.flags[2]}",
    )


def _wrong(reason: str, address: str, text: str) -> UnavailableError:
    return UnavailableError(text, reason=reason, target=address)


def _names_of(certificate: dict[str, Any]) -> list[str]:
    """What a server may be called; roles, which are URIs, are no names."""
    shown = certificate.get("subjectAltName", ())
    return [str(name) for kind, name in shown if kind in ("DNS", "IP Address")]


def _is_for(certificate: dict[str, Any], wanted: str) -> bool:
    """Whether a certificate, as `ssl` tells it, is for a name or an address. Chooses a name only:
    the connections that are made with it check it by themselves."""
    shown = certificate.get("subjectAltName", ())
    try:
        address = ipaddress.ip_address(wanted)
    except ValueError:
        return any(kind == "DNS" and _dns_matches(name.lower(), wanted) for kind, name in shown)
    return any(
        kind == "IP Address" and ipaddress.ip_address(name.strip()) == address
        for kind, name in shown
    )


def _dns_matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        _first, dot, rest = name.partition(".")
        return bool(dot) and rest == pattern[2:]
    return pattern == name


def _listed(names: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(names))


# ---- the files


def _content(path: str, name: str) -> bytes:
    if "-----BEGIN" in path or "\n" in path:
        # Not shown: this may be the private key itself.
        raise StateError(f"{name} holds PEM text: give the path of a file", reason="TLS_FILE")
    try:
        if Path(path).exists() and not Path(path).is_file():
            # A pipe or a device might never end.
            _refuse(path, name, "is not a file")
        with Path(path).open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no path"
        _refuse(path, name, f"cannot be read on this host: {why}")
    if len(content) > _FILE_BYTES_MAX:
        _refuse(path, name, f"is no PEM file: it has more than {_FILE_BYTES_MAX} bytes")
    return content


def _certificates(content: bytes, path: str, name: str) -> list[x509.Certificate]:
    # Imported when it is wanted: most daemons never do.
    from cryptography.x509 import load_pem_x509_certificates

    wanted = "a certificate in PEM form"
    return _parsed(lambda: load_pem_x509_certificates(content), path, name, wanted)


def _check_key(key: bytes, leaf: x509.Certificate, files: TlsFiles, name: str) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    wanted = "a private key in PEM form without a passphrase"
    private = _parsed(lambda: load_pem_private_key(key, None), files.key, name, wanted)
    if private.public_key() != leaf.public_key():
        _refuse(files.key, name, f"is not the key of the certificate in {files.cert}")


def _parsed(parse: Callable[[], _T], path: str, name: str, wanted: str) -> _T:
    try:
        return parse()
    except Exception:  # noqa: BLE001 - many kinds, whose texts may quote what they read
        _refuse(path, name, f"does not hold {wanted}")


def _check_use(leaf: x509.Certificate, path: str, name: str, *, server: bool) -> None:
    """A certificate that says what it may be used for must say so of what it is used for here."""
    from cryptography.x509 import ExtendedKeyUsage
    from cryptography.x509.oid import ExtendedKeyUsageOID as Use

    found = _parsed(lambda: list(leaf.extensions), path, name, "a certificate that can be read")
    wanted = {Use.CLIENT_AUTH: "clientAuth"} | ({Use.SERVER_AUTH: "serverAuth"} if server else {})
    for extension in found:
        if isinstance(extension.value, ExtendedKeyUsage):
            missing = [text for use, text in wanted.items() if use not in extension.value]
            if missing:
                texts = " and ".join(wanted.values())
                _refuse(path, name, f"must be for {texts}, and is not for {' and '.join(missing)}")


def _check_period(certificate: x509.Certificate, path: str, name: str) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        day = certificate.not_valid_after_utc
        _refuse(path, name, f"expired on {day:%Y-%m-%d %H:%M} UTC: renew it")
    if now < certificate.not_valid_before_utc:
        day = certificate.not_valid_before_utc
        _refuse(path, name, f"is not valid before {day:%Y-%m-%d %H:%M} UTC: is the clock right?")


def _refuse(path: str, name: str, why: str) -> NoReturn:
    shown = path if len(path) <= _PATH_SHOWN_MAX else f"{path[:_PATH_SHOWN_MAX]}…"
    raise StateError(f"{name}: {shown} {why}", reason="TLS_FILE", field=name, file=shown) from None
