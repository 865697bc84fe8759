"""Which policies may act: one answer for all processes on a database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from switchgear.core.clock import Clock, SystemClock
from switchgear.core.errors import Invalid, NotFound, Reason
from switchgear.core.modes import Mode
from switchgear.store.database import Database
from switchgear.store.tables import PolicyModeRow

#: How long an answer may be old: any process follows a change within this time.
FRESH_S = 1.0

RESTART = "recovery.restart"
CORDON = "recovery.cordon"
SCALE = "autoscaler.scale"


@dataclass(frozen=True, slots=True)
class Policy:
    """description: what it does when it acts. default: its mode when nobody says otherwise."""

    name: str
    description: str
    default: Mode


#: All there are, in name order.
POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(SCALE, "Adds and drains replicas of an inference service to fit its load.", Mode.ACT),
        # The nodes of the `local` engine are ours alone; an engine with users of its own will want another default.
        Policy(CORDON, "Takes a node out of placement on fatal evidence against it.", Mode.ACT),
        Policy(RESTART, "Restarts a failed job from its newest good checkpoint, on other nodes if need be.", Mode.ACT),
    )
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The mode in force. actor: who set it: `config`, `user:…`, or empty for the default; update time 0: not set by anybody."""

    policy: Policy
    mode: Mode
    actor: str = ""
    update_time_unix_ns: int = 0


class PolicyModes:
    """The modes in force: what was set through the API, else the configuration of this process, else the default.

    configured: give all processes of an installation the same. Raises Invalid when it names an unknown policy.
    """

    def __init__(
        self, database: Database, configured: Mapping[str, Mode] | None = None, *, clock: Clock | None = None
    ) -> None:
        self._database, self._configured, self._clock = database, dict(configured or {}), clock or SystemClock()
        self._known: dict[str, Setting] = {}
        self._read_s = 0.0
        for name in self._configured:
            if name not in POLICIES:
                raise Invalid(
                    f"there is no policy {name[:100]!r}; there are {', '.join(POLICIES)}",
                    Reason.BAD_FIELD,
                    field="policy",
                )

    async def of(self, policy: str) -> Mode:
        """The mode of one policy, at most FRESH_S old. Not inside a `read` or `write` of the same task.

        Raises NotFound when there is no such policy, and what the database raises when it cannot be read.
        """
        if policy not in POLICIES:
            raise NotFound(f"policies/{policy}")
        now_s = self._clock.monotonic_s()
        if not self._known or now_s - self._read_s >= FRESH_S:
            async with self._database.read() as session:
                self._known = {setting.policy.name: setting for setting in await self.settings(session)}
            self._read_s = now_s
        return self._known[policy].mode

    async def settings(self, session: AsyncSession) -> list[Setting]:
        """All policies in name order, as of this session."""
        rows = {row.policy: row for row in await session.scalars(select(PolicyModeRow))}
        return [self._setting(policy, rows.get(name)) for name, policy in POLICIES.items()]

    async def set(
        self, session: AsyncSession, policy: str, mode: Mode | None, *, actor: str, now_unix_ns: int
    ) -> Setting:
        """Sets the mode, in a `write` transaction; None goes back to the configuration or default. Raises NotFound."""
        if policy not in POLICIES:
            raise NotFound(
                f"policies/{policy}", f"there is no policy {policy[:100]!r}; there are {', '.join(POLICIES)}"
            )
        await session.execute(delete(PolicyModeRow).where(PolicyModeRow.policy == policy))
        row = None
        if mode is not None:
            row = PolicyModeRow(policy=policy, mode=mode.value, actor=actor, update_time_unix_ns=now_unix_ns)
            session.add(row)
        self._known = {}
        return self._setting(POLICIES[policy], row)

    def _setting(self, policy: Policy, row: PolicyModeRow | None) -> Setting:
        if row is not None:
            return Setting(policy, Mode(row.mode), row.actor, row.update_time_unix_ns)
        if policy.name in self._configured:
            return Setting(policy, self._configured[policy.name], "config")
        return Setting(policy, policy.default)
