"""The lease counts from when a heartbeat was sent."""

from __future__ import annotations

from switchgear.launcher.lease import Lease


def test_nothing_may_run_before_the_first_grant() -> None:
    assert not Lease().is_valid(0)
    assert not Lease().sent(10).is_valid(10)


def test_a_grant_counts_from_when_its_heartbeat_was_sent() -> None:
    lease = Lease().sent(10).granted(1, 30)
    assert (lease.is_valid(39.9), lease.is_valid(40)) == (True, False)


def test_a_slow_answer_to_an_old_heartbeat_never_shortens_the_lease() -> None:
    lease = Lease().sent(10).sent(11)
    assert lease.sequence == 2
    newer = lease.granted(2, 30)
    assert newer.granted(1, 30) == newer
    assert newer.expires_at_s == 41


def test_an_unknown_or_empty_grant_changes_nothing() -> None:
    lease = Lease().sent(10)
    assert lease.granted(9, 30) == lease
    assert lease.granted(1, 0) == lease


def test_unanswered_heartbeats_do_not_pile_up() -> None:
    lease = Lease()
    for second in range(1000):
        lease = lease.sent(second)
    assert lease.granted(1, 1e6) == lease, "too old to be remembered"
    assert lease.granted(1000, 30).expires_at_s == 999 + 30
    assert len(lease._sent) < 100
