"""What an admin hands to a new node as one string: the secret, where to take it, and whom to believe there."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from switchgear.core.errors import Invalid, Reason

_LENGTH_MAX = 8000


@dataclass(frozen=True, slots=True)
class Invitation:
    """secret: good for one certificate. enroll: HOST:PORT of AccessService. ca: the CA's certificate in PEM, so that even the first
    connection is verified. server: HOST:PORT of the machines' port; empty when the services are apart.
    """

    secret: str
    enroll: str
    ca: str
    server: str = ""

    def encode(self) -> str:
        """The string for `switchgear agent --join`."""
        fields = {"secret": self.secret, "enroll": self.enroll, "ca": self.ca, "server": self.server}
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Invitation:
        """Raises Invalid (BAD_FIELD) for anything that `encode` has not made."""
        try:
            if len(text) > _LENGTH_MAX:
                raise ValueError
            padded = text.strip() + "=" * (-len(text.strip()) % 4)
            fields = json.loads(base64.b64decode(padded.encode(), altchars=b"-_", validate=True))
            found = cls(fields["secret"], fields["enroll"], fields["ca"], fields["server"])
            if not all(isinstance(value, str) for value in (found.secret, found.enroll, found.ca, found.server)):
                raise TypeError
        except (ValueError, TypeError, KeyError, binascii.Error, RecursionError):
            # Not repeated: it may hold a good secret with one letter too many.
            raise Invalid(
                "this is no join token; give the whole line that `switchgear join-token` printed",
                Reason.BAD_FIELD,
                field="join",
            ) from None
        return found
