"""Whether what the collector counts of a target's samples agrees with what the target has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_PREFIX = "switchgear_remote_write"


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a target's samples. waiting: in its queue or under way. in_doubt: they may have come beside those sent."""

    sent: float
    failed: float
    dropped: float
    waiting: float
    in_doubt: float

    @property
    def made(self) -> float:
        """That it was to get."""
        return self.sent + self.failed + self.dropped + self.waiting


def account(page: Mapping[str, float], target: str) -> Account:
    """Of a page of metrics; see `processes.scrape`."""
    sent, failed, dropped = (
        page.get(f'{_PREFIX}_samples_total{{outcome="{outcome}",target="{target}"}}', 0.0)
        for outcome in ("sent", "failed", "dropped")
    )
    waiting = page.get(f'{_PREFIX}_queue_samples{{target="{target}"}}', 0.0)
    in_doubt = page.get(f'{_PREFIX}_samples_in_doubt_total{{target="{target}"}}', 0.0)
    return Account(sent, failed, dropped, waiting, in_doubt)


def agree(before: Account, decoded: float, after: Account) -> bool:
    """Whether a target can have so many samples that was looked at between the two: what was sent, and no more than may have come.

    The two are needed: samples go on coming while the target counts, those that say that the series have ended half a minute later.
    """
    return before.sent <= decoded <= after.sent + after.in_doubt + after.waiting
