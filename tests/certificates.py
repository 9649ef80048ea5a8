"""Certificates for tests of TLS, made as they are wanted: an authority and what it signs."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stairlib.rpc.tls import TlsFiles

DAY = dt.timedelta(days=1)
SLOT_NAMES = ("downstairs0", "downstairs1", "downstairs2")


@dataclass(frozen=True)
class Period:
    """When a certificate is valid, as days from now."""

    first: float = -1
    last: float = 30

    def bounds(self) -> tuple[dt.datetime, dt.datetime]:
        now = dt.datetime.now(dt.UTC)
        return now + self.first * DAY, now + self.last * DAY


VALID = Period()
EXPIRED = Period(-3, -1)
NOT_YET = Period(1, 3)


class Authority:
    """A certificate authority of its own; its certificate and all that it signs are in `folder`."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.root = folder / "root.pem"
        certificate = (
            _builder(self._name, self._name, self._key, VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.root.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        *names: str,
        period: Period = VALID,
        passphrase: bytes | None = None,
        uses: Sequence[x509.ObjectIdentifier] = (),
        role: str | None = "daemon",
    ) -> TlsFiles:
        """A certificate for host names and IP addresses (`names`), as three files; for any use
        where `uses` is empty; without a role where that is None."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key, period)
        alternatives = [_general(each) for each in names]
        if role is not None:
            alternatives.append(x509.UniformResourceIdentifier(f"stairwell://{role}/{name}"))
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        if uses:
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        cert_path, key_path = self._folder / f"{name}.cert.pem", self._folder / f"{name}.key.pem"
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(_key_bytes(key, passphrase))
        key_path.chmod(0o600)
        return TlsFiles(str(cert_path), str(key_path), str(self.root))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, period: Period
) -> x509.CertificateBuilder:
    first, last = period.bounds()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_bytes(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
