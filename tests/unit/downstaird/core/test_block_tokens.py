"""Who may take a repair's blocks beside its messages."""

import pytest

from downstaird.core.block_tokens import BLOCK_CONNECTIONS_MAX, BlockTokens
from downstaird.core.session_table import TOKEN_SECONDS
from stairlib.model.errors import LimitError, RefusedError


def test_a_token_is_good_once_and_for_a_short_time():
    tokens = BlockTokens()
    tokens.offer(b"one", 5.0)
    tokens.offer(b"late", 5.0)
    assert not tokens.takes(b"made up", 5.0)
    assert tokens.takes(b"one", 5.0 + TOKEN_SECONDS - 1)
    assert not tokens.takes(b"one", 5.0 + TOKEN_SECONDS - 1)
    assert not tokens.takes(b"late", 5.0 + TOKEN_SECONDS)


def test_a_token_is_the_name_of_its_connection_until_that_goes():
    tokens = BlockTokens()
    tokens.offer(b"one", 0.0)
    with pytest.raises(RefusedError, match="no block connection"):
        tokens.find(b"one")
    assert tokens.takes(b"one", 1.0)
    tokens.connected(b"one", "connection")
    assert tokens.find(b"one") == "connection"
    assert tokens.all() == ["connection"]
    tokens.gone(b"one")
    tokens.gone(b"one")
    with pytest.raises(RefusedError):
        tokens.find(b"one")


def test_there_is_a_most_of_them_and_forgotten_ones_make_room():
    tokens = BlockTokens()
    for number in range(BLOCK_CONNECTIONS_MAX):
        tokens.offer(bytes([number]), 0.0)
        if number % 2:
            assert tokens.takes(bytes([number]), 1.0)
            tokens.connected(bytes([number]), number)
    with pytest.raises(LimitError):
        tokens.offer(b"more", 1.0)
    tokens.offer(b"more", TOKEN_SECONDS)
    tokens.gone(b"\x01")
    tokens.offer(b"another", TOKEN_SECONDS)
