"""What is known of each service now, and who waits for it to change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from switchgear.core.clock import Clock
from switchgear.core.errors import NotFound, Reason, Unavailable


@dataclass(frozen=True, slots=True)
class Published:
    """A decision in force.

    desired: replicas that there should be. current: those that answered. blind: why the figures may be wrong; empty: all is seen.
    held: what was desired when the blindness began. good_until_s: monotonic; from then on it is too old to be acted on. seen_s:
    monotonic, of the last look at which nothing was missing; None: never yet.
    """

    desired: int
    current: int
    blind: str
    held: int
    good_until_s: float
    seen_s: float | None

    @property
    def active(self) -> bool | None:
        """Whether there should be a replica at all. None: nobody can tell, since what would show a request is not seen."""
        if self.desired == 0 and self.blind:
            return None
        return self.desired > 0


class Board:
    """The newest decision of each of the `services`; only these may be asked for."""

    def __init__(self, services: Iterable[str], clock: Clock) -> None:
        self._clock = clock
        self._published: dict[str, Published | None] = dict.fromkeys(services)
        self._changed = asyncio.Event()
        self._closed = False

    def post(self, service: str, published: Published) -> None:
        self._published[service] = published
        self._wake()

    def close(self) -> None:
        """Ends all `activity`: a stream that ends well is opened again sooner than one that breaks."""
        self._closed = True
        self._wake()

    def now(self) -> Mapping[str, Published | None]:
        """Of each service what is in force, None: nothing is, because nothing was decided yet or not lately."""
        now_s = self._clock.monotonic_s()
        return {
            service: found if found is not None and now_s < found.good_until_s else None
            for service, found in self._published.items()
        }

    def require(self, service: str) -> None:
        """Raises NotFound for a service that is not ours."""
        if service not in self._published:
            raise NotFound(
                service,
                f"no service is named {service!r} here; there are: {', '.join(self._published)}. Write one of them as `service` into the "
                "trigger's metadata",
            )

    def of(self, service: str) -> Published:
        """What is in force. Raises NotFound for a service that is not ours, Unavailable when nothing is in force."""
        self.require(service)
        if (found := self.now()[service]) is None:
            raise Unavailable(f"{service}: nothing was decided lately; its log says why", Reason.METRICS_UNSEEN)
        return found

    def desired(self, service: str) -> int:
        """For whoever scales by it. Raises as `of`, and Unavailable when the service is not seen and nothing asks for more than it had:
        without a figure replicas are kept, also from other metrics that would let them go.
        """
        found = self.of(service)
        if found.blind and found.desired <= found.held:
            raise Unavailable(
                f"{service} is not seen ({found.blind}); {found.held} replicas are to be kept", Reason.METRICS_UNSEEN
            )
        return found.desired

    async def activity(self, service: str) -> AsyncIterator[bool]:
        """Whether there should be a replica at all: as it is, as soon as that is known, then each change, until `close`.

        Raises NotFound.
        """
        told: bool | None = None
        while not self._closed:
            changed = self._changed
            try:
                active = self.of(service).active
            except Unavailable:
                active = None
            if active is not None and active != told:
                told = active
                yield active
                continue
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
