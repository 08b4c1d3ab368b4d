"""The API key that clients have to send."""

from __future__ import annotations

import hmac

from parnet_deploy.errors import RequestError


class WrongKeyError(RequestError):
    """The key is not there, or not the right one (401).

    Attributes:
        was_given: whether there was one.
    """

    def __init__(self, message: str, *, was_given: bool) -> None:
        """Refuse."""
        super().__init__(401, message)
        self.was_given = was_given


def check_key(given: bytes, key: bytes, how: str) -> None:
    """Let pass who sends ``Bearer KEY``.

    Args:
        given: what a request's ``authorization`` says; empty where there is none.
        key: the right one.
        how: how to send it, for those who do not.

    Raises:
        WrongKeyError: it is another, or none.
    """
    scheme, _, token = given.partition(b" ")
    if scheme.lower() != b"bearer":
        raise WrongKeyError(f"an API key is needed: send it as {how}", was_given=False)
    if not hmac.compare_digest(token.strip(), key):
        raise WrongKeyError("this API key is not the right one", was_given=True)
