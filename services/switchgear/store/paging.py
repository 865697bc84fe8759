"""Pages of a list (https://google.aip.dev/158)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from google.protobuf.message import Message

from switchgear.core.errors import Invalid, Reason

PAGE_SIZE_DEFAULT = 100
#: A page stays one short query; a list of large resources ends its pages earlier, by bytes.
PAGE_SIZE_MAX = 1000
#: Half of the largest message: the rest is for what goes around the resources, and for the last of them.
PAGE_BYTES_MAX = 2 * 1024 * 1024
_TOKEN_LENGTH_MAX = 2000


def page_size(requested: int) -> int:
    """How many rows a page has: 0 means 100, more than 1000 means 1000. Raises Invalid (BAD_FIELD) when negative."""
    if requested < 0:
        raise Invalid(
            "page_size must not be negative; leave it out for the default", Reason.BAD_FIELD, field="page_size"
        )
    return min(requested or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def page_token(collection: str, last: str | int) -> str:
    """The token of the page after the row whose sort key is `last`.

    collection: the list and its filter, as text; a token is only good for the same.
    """
    return base64.urlsafe_b64encode(json.dumps([collection, last]).encode()).decode()


def fitting(messages: Sequence[Message]) -> int:
    """How many of the messages, from the first on, a page holds: at least one, and no more than a response may have in bytes."""
    size = 0
    for position, message in enumerate(messages):
        size += message.ByteSize()
        if size > PAGE_BYTES_MAX and position > 0:
            return position
    return len(messages)


def after_text(collection: str, token: str) -> str | None:
    """The sort key in a token of a list that is sorted by text; None for the first page.

    Raises Invalid (BAD_PAGE_TOKEN) for anything that `page_token` has not made for this collection.
    """
    last = _decode(collection, token)
    if isinstance(last, int):
        raise _bad()
    return last


def after_number(collection: str, token: str) -> int | None:
    """As `after_text`, for a list that is sorted by number."""
    last = _decode(collection, token)
    if isinstance(last, str):
        raise _bad()
    return last


def _decode(collection: str, token: str) -> str | int | None:
    if not token:
        return None
    if len(token) > _TOKEN_LENGTH_MAX:
        raise _bad()
    try:
        value = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise _bad() from None
    match value:
        case [str(made_for), str(last) | int(last)] if made_for == collection and not isinstance(last, bool):
            # A number that no column can hold never came from us.
            if isinstance(last, str) or -(2**63) <= last < 2**63:
                return last
    raise _bad()


def _bad() -> Invalid:
    return Invalid(
        "page_token is not one that this list gave; list again from the first page",
        Reason.BAD_PAGE_TOKEN,
        field="page_token",
    )
