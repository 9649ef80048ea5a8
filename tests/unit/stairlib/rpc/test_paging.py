"""Page sizes and tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.errors import InvalidRequestError
from stairlib.rpc.paging import PAGE_DEFAULT, PAGE_MAX, page_size, position, token


def test_sizes() -> None:
    assert page_size(0) == PAGE_DEFAULT
    assert page_size(3) == 3
    assert page_size(1 << 31) == PAGE_MAX


@given(st.text())
def test_a_token_says_its_position(text: str) -> None:
    assert position(token(text)) == text


@pytest.mark.parametrize("text", ["?", "a", "é", "////", "_w=="])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        position(text)
    assert caught.value.violations[0].field == "page_token"
