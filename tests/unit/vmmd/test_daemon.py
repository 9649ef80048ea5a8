"""Where vmmd listens for NBD, and where it must not."""

from __future__ import annotations

import pytest

from stairlib.model.errors import InvalidRequestError
from stairlib.rpc.server import Security
from stairlib.rpc.tls import TlsFiles
from vmmd.daemon import nbd_listener

FILES = TlsFiles("cert", "key", "ca")


def test_nowhere_unless_it_is_said() -> None:
    assert nbd_listener("", Security()) is None


@pytest.mark.parametrize(
    ("given", "security"),
    [
        ("127.0.0.1:10809", Security()),
        ("[::1]:0", Security()),
        ("0.0.0.0:10809", Security(FILES)),
        ("0.0.0.0:10809", Security(insecure=True)),
    ],
)
def test_where_it_may(given: str, security: Security) -> None:
    assert str(nbd_listener(given, security)) == given


@pytest.mark.parametrize("given", ["0.0.0.0:10809", "[::]:10809", "10.0.0.5:10809"])
def test_no_plain_text_over_a_network(given: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"serving NBD on .* --insecure") as caught:
        nbd_listener(given, Security())
    assert caught.value.reason == "PLAIN_TEXT"


@pytest.mark.parametrize("given", ["unix:/tmp/x", "host", "1.2.3.4:99999"])
def test_what_is_no_place_for_it(given: str) -> None:
    with pytest.raises(InvalidRequestError):
        nbd_listener(given, Security(FILES))
