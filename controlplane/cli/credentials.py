"""Who the user is to the control plane: a certificate, or a bearer token, or nobody in plain text.

Nothing is read before it is needed. Invariants: a token goes over TLS alone; plain text goes to
another host only when `--insecure` was said, since requests hold keys.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from stairlib.model.errors import InvalidRequestError, StateError, UnavailableError
from stairlib.rpc.flags import FLAGS
from stairlib.rpc.gate import require_private
from stairlib.rpc.tls import Kind, PeerTls, TlsFiles, tls_files, why
from stairlib.runtime.addresses import parse_address

CONTROL_PLANE = Kind("the control plane", FLAGS, "it")
_REMEDY = (
    "give --tls-ca, --tls-cert and --tls-key, or --tls-ca and --token-file; or set "
    "STAIRWELL_TLS_CA and so on"
)
_TOKEN_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """The paths the user gave; `token_file` instead of certificate and key."""

    ca: str | None = None
    cert: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    token_file: str | None = None
    insecure: bool = False

    def files(self) -> TlsFiles | None:
        """The three files, or None where there is no certificate. InvalidRequestError when some
        are missing."""
        if self.token_file is not None:
            return None
        return tls_files(self.cert, self.key, self.ca, FLAGS)

    def peer(self, address: str) -> PeerTls | None:
        """How the control plane at `address` is reached; None is plain text. InvalidRequestError or
        StateError when it cannot be, with what is given."""
        host = parse_address(address).host
        if self.token_file is not None:
            return self._with_token(host)
        files = self.files()
        if files is None:
            if not self.insecure:
                require_private(address, "speaking to the control plane")
            return None
        client = files.client()
        return PeerTls(client.credentials, client.context, host)

    async def why(self, address: str, error: UnavailableError) -> UnavailableError:
        """The failure of a call, or what is wrong with certificates."""
        if self.token_file is not None:
            return error
        return await why(address, error, self.files(), CONTROL_PLANE, _REMEDY)

    def _with_token(self, host: str) -> PeerTls:
        if self.cert or self.key:
            raise InvalidRequestError("--token-file stands for --tls-cert and --tls-key: leave out")
        if not self.ca:
            raise InvalidRequestError(
                "--token-file takes --tls-ca too: a token is shown to nobody but the real one",
                reason="TLS_INCOMPLETE",
            )
        token = _token(Path(self.token_file or ""))
        try:
            root = Path(self.ca).read_bytes()
            context = ssl.create_default_context(cadata=root.decode())
        except (OSError, ValueError) as error:
            text = f"--tls-ca: {self.ca} does not hold a certificate that can be read"
            raise StateError(text, reason="TLS_FILE") from error
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(root), grpc.access_token_call_credentials(token)
        )
        return PeerTls(credentials, context, host)


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            token = file.read(_TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise StateError(f"--token-file: {path} cannot be read", reason="TOKEN_FILE") from error
    if not token or len(token.split()) != 1 or len(token) > _TOKEN_BYTES_MAX:
        raise StateError(f"--token-file: {path} does not hold one token", reason="TOKEN_FILE")
    return token
