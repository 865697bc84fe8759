"""Tokens and the audit log on both databases."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from access_world import DAY_NS, add_token

from switchgear.access import audit, secret, store
from switchgear.access.audit import AuditLog
from switchgear.access.model import Entry, JoinToken
from switchgear.core.clock import ManualClock
from switchgear.core.errors import NotFound, PermissionDenied, Reason, ResourceExhausted, Unavailable
from switchgear.core.identity import Role
from switchgear.store.database import Database, sqlite_url
from switchgear.store.holder import Candidate

NOW = 1_700_000_000_000_000_000
ENTRY = Entry(NOW, "user:ann", Role.OPERATOR, "S/CordonNode", "nodes/a", "OK", "", "127.0.0.1:1", "", refused=False)
REFUSAL = replace(ENTRY, actor="", outcome="UNAUTHENTICATED", message="no token", peer="127.0.0.1", refused=True)


async def entries(database: Database) -> list[Entry]:
    async with database.read() as session:
        return await store.entries_before(session, None, 1000)


async def join_token(database: Database, node: str, valid_ns: int = DAY_NS) -> tuple[str, bytes]:
    _, token_id, digest = secret.create(secret.JOIN)
    async with database.write() as session:
        await store.add_join_token(session, JoinToken(token_id, digest, node, NOW + valid_ns), NOW)
    return token_id, digest


async def use(database: Database, token: tuple[str, bytes], node: str, now: int = NOW) -> None:
    async with database.write() as session:
        await store.use_join_token(session, *token, node, now)
        await store.note_node(session, node, NOW + DAY_NS, now)


async def test_of_two_nodes_with_one_join_token_one_joins(database: Database) -> None:
    token = await join_token(database, "")
    outcomes = await asyncio.gather(
        *(use(database, token, f"nodes/{name}") for name in ("a", "b", "c")), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [
        "NoneType",
        "PermissionDenied",
        "PermissionDenied",
    ]


async def test_a_join_token_is_good_once_in_time_and_for_its_node(database: Database) -> None:
    bound, wrong = await join_token(database, "nodes/a"), (await join_token(database, ""))[0]
    for token, node, now, why in (
        (bound, "nodes/b", NOW, "is for nodes/a"),
        (bound, "nodes/a", NOW + DAY_NS, "expired"),
        ((wrong, b"x" * 32), "nodes/a", NOW, "no such"),
        (("0" * 16, b"x" * 32), "nodes/a", NOW, "no such"),
    ):
        with pytest.raises(PermissionDenied, match=why) as refused:
            await use(database, token, node, now)
        assert refused.value.reason is Reason.JOIN_TOKEN_UNUSABLE
    await use(database, bound, "nodes/a")
    with pytest.raises(PermissionDenied, match="used already"):
        await use(database, bound, "nodes/a")


async def test_a_token_for_any_node_does_not_take_the_name_of_one_that_is_there(database: Database) -> None:
    await use(database, await join_token(database, ""), "nodes/a")
    with pytest.raises(PermissionDenied, match="joined already"):
        await use(database, await join_token(database, ""), "nodes/a")
    await use(database, await join_token(database, "nodes/a"), "nodes/a")


async def test_tokens_are_bounded_and_those_of_no_use_leave(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "TOKENS_MAX", 2)
    monkeypatch.setattr(store, "JOIN_TOKENS_MAX", 1)
    clock = ManualClock(NOW)
    for user in ("a", "b"):
        await add_token(database, clock, user, Role.VIEWER)
    with pytest.raises(ResourceExhausted):
        await add_token(database, clock, "c", Role.VIEWER)
    clock.advance(32 * 86400)
    await add_token(database, clock, "c", Role.VIEWER)
    await join_token(database, "")
    with pytest.raises(ResourceExhausted):
        await join_token(database, "")


async def test_a_token_is_revoked_once(database: Database) -> None:
    token_id = (await add_token(database, ManualClock(NOW), "ann", Role.ADMIN)).split("_")[1]
    async with database.write() as session:
        first = await store.revoke_token(session, token_id, NOW + 1)
        again = await store.revoke_token(session, token_id, NOW + 2)
        assert first.revoke_time_unix_ns == again.revoke_time_unix_ns == NOW + 1
        with pytest.raises(NotFound):
            await store.revoke_token(session, "0" * 16, NOW)


async def test_the_log_keeps_its_order_and_its_bounds_by_kind(database: Database) -> None:
    log = AuditLog(database, ManualClock(NOW))
    for number in range(6):
        log.put(replace(ENTRY, resource=f"nodes/{number}"))
        log.refuse(replace(REFUSAL, peer=f"192.0.2.{number}"))
        await log.flush()
    found = await entries(database)
    assert [entry.resource for entry in found if not entry.refused] == [f"nodes/{n}" for n in (5, 4, 3, 2, 1, 0)]
    async with database.write() as session:
        await store.prune(session, mutations_max=4, refusals_max=1)
    kept = await entries(database)
    assert [entry.resource for entry in kept if not entry.refused] == [f"nodes/{n}" for n in (5, 4, 3, 2)]
    assert [entry.peer for entry in kept if entry.refused] == ["192.0.2.5"]


async def test_a_flood_of_many_kinds_shares_one_line_beyond_the_bound(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ANONYMOUS_KINDS_MAX", 3)
    log = AuditLog(database, ManualClock(NOW))
    for number in range(50):
        log.refuse(replace(REFUSAL, peer=f"192.0.2.{number}"))
    await log.flush()
    found = await entries(database)
    assert sorted(entry.count for entry in found) == [1, 1, 1, 47]
    assert next(entry for entry in found if entry.count == 47).peer == ""


async def test_a_caller_whom_nobody_knows_makes_no_kinds_of_its_own_words_and_hides_nobody(database: Database) -> None:
    log = AuditLog(database, ManualClock(NOW))
    for number in range(1000):
        log.refuse(replace(REFUSAL, resource=f"nodes/{number}", message=f"nodes/{number} cannot join"))
    for method in range(100):
        for host in ("192.0.2.1", "192.0.2.2"):
            log.refuse(replace(REFUSAL, method=f"S/{method}", peer=host))
    log.refuse(replace(REFUSAL, peer="198.51.100.7"))
    for actor in ("user:eve", "node:b"):
        log.refuse(replace(REFUSAL, actor=actor, outcome="PERMISSION_DENIED"))
    await log.flush()
    found = await entries(database)
    lines = Counter((entry.actor, entry.peer) for entry in found)
    assert lines["", "127.0.0.1"] == 1
    assert lines["", "192.0.2.1"] == lines["", "192.0.2.2"] == audit.HOST_KINDS_MAX + 1
    assert [entry.count for entry in found if entry.peer == "192.0.2.1" and not entry.method] == [
        100 - audit.HOST_KINDS_MAX
    ]
    assert lines["", "198.51.100.7"] == lines["user:eve", "127.0.0.1"] == lines["node:b", "127.0.0.1"] == 1


async def test_one_actor_does_not_hide_another(database: Database) -> None:
    log = AuditLog(database, ManualClock(NOW))
    for number in range(500):
        log.refuse(replace(REFUSAL, actor="user:eve", message=f"nodes/{number}"))
    log.refuse(replace(REFUSAL, actor="user:ann"))
    await log.flush()
    found = await entries(database)
    assert Counter(entry.actor for entry in found) == {"user:eve": audit.ACTOR_KINDS_MAX + 1, "user:ann": 1}
    assert sum(entry.count for entry in found) == 501


async def test_a_flood_of_anonymous_refusals_pushes_out_none_of_an_actor(database: Database) -> None:
    log = AuditLog(database, ManualClock(NOW))
    log.refuse(replace(REFUSAL, actor="user:eve"))
    await log.flush()
    for number in range(5):
        log.refuse(replace(REFUSAL, peer=f"192.0.2.{number}"))
    await log.flush()
    async with database.write() as session:
        await store.prune(session, refusals_max=2)
    assert sorted(entry.peer for entry in await entries(database)) == ["127.0.0.1", "192.0.2.3", "192.0.2.4"]


async def test_refusals_of_the_next_window_have_a_line_of_their_own(database: Database) -> None:
    clock = ManualClock(NOW)
    log = AuditLog(database, clock)
    for _ in range(2):
        log.refuse(REFUSAL)
        log.refuse(REFUSAL)
        await log.flush()
        log.refuse(REFUSAL)
        clock.advance(audit.WINDOW_S)
        await log.flush()
    assert [entry.count for entry in await entries(database)] == [3, 3]


async def test_a_change_that_cannot_be_written_down_is_not_answered_as_done(tmp_path: Path) -> None:
    log = AuditLog(Database(sqlite_url(tmp_path / "no-such-folder" / "state.db")), ManualClock(NOW))
    running = asyncio.create_task(log.run())
    with pytest.raises(Unavailable, match="same request_id"):
        await log.write(ENTRY)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_last_entries_are_written_although_the_leases_are_released(database: Database) -> None:
    log = AuditLog(database, ManualClock(NOW))
    async with Candidate(database, ManualClock(NOW), ["services/recovery"], "one").holding():
        log.put(ENTRY)
    log.refuse(REFUSAL)
    await log.flush()
    assert len(await entries(database)) == 2


async def test_text_that_postgresql_cannot_store_or_that_is_too_long_is_cut(database: Database) -> None:
    log = AuditLog(database, ManualClock(NOW))
    log.put(replace(ENTRY, resource="a\0b" * 500, message="x" * 5000, method="m" * 500))
    await log.flush()
    (entry,) = await entries(database)
    assert (len(entry.resource), len(entry.message), "\0" in entry.resource) == (200, 500, False)


async def test_what_steers_a_terminal_or_forges_a_line_is_not_stored(database: Database) -> None:
    hostile = "nodes/a\x1b[2J\n2026-01-01 00:00:00  user:root  OK\u202e"
    log = AuditLog(database, ManualClock(NOW))
    log.refuse(replace(REFUSAL, method=hostile, resource=hostile, message=hostile, peer=hostile))
    log.put(replace(ENTRY, resource=hostile, trace_id=hostile))
    await log.flush()
    for entry in await entries(database):
        stored = entry.method, entry.resource, entry.message, entry.peer, entry.trace_id
        assert all(text.isprintable() for text in stored)
        assert entry.resource.startswith("nodes/a\ufffd[2J\ufffd2026")
