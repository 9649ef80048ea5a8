"""Pages of lists: sizes within bounds, and tokens that say where the next page begins."""

from __future__ import annotations

import base64
import binascii

from stairlib.model.errors import FieldViolation, InvalidRequestError

PAGE_DEFAULT = 100
# The largest page of our lists, disks with their volumes, stays far below the limit of a message.
PAGE_MAX = 500


def page_size(asked: int) -> int:
    """The size of a page; zero asks for the default."""
    return min(asked, PAGE_MAX) if asked else PAGE_DEFAULT


def token(position: str) -> str:
    """The token of a page that begins after `position`."""
    return base64.urlsafe_b64encode(position.encode()).decode()


def position(page_token: str) -> str:
    """The position in a token; InvalidRequestError for a text that is no token."""
    try:
        return base64.b64decode(page_token.encode("ascii"), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise bad_token() from None


def bad_token() -> InvalidRequestError:
    """The refusal of a page token."""
    text = "is not a token of this list; take it from next_page_token as it is"
    return InvalidRequestError(
        f"the page token {text}", (FieldViolation("page_token", text, "BAD_PAGE_TOKEN"),)
    )
