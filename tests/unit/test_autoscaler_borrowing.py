"""What a service has of training jobs, and for how long."""

from __future__ import annotations

from dataclasses import replace

from switchgear.autoscaler.borrowing import BORROWED_S_MIN, Borrowed, borrowed, kept_until_unix_ns
from switchgear.autoscaler.model import Loan, ReplicaRecord, ReplicaState, ServiceRecord, ServiceSpec, World
from switchgear.autoscaler.observation import Decision
from switchgear.autoscaler.plan import Verdict, judge
from switchgear.autoscaler.replicas import reconcile
from switchgear.core.modes import Mode

CHAT = "inferenceServices/chat"
S = 1_000_000_000


def replica(number: int, state: ReplicaState = ReplicaState.READY, ready_s: float = 40.0) -> ReplicaRecord:
    name, job = f"{CHAT}/replicas/{number}", f"jobs/chat-r{number}"
    return ReplicaRecord(CHAT, number, name, job, 0, state, ready_time_unix_ns=round(ready_s * S), node="nodes/a")


def lent(lender: str, to: int, gpus: int = 2, since_s: int = 1000) -> dict[str, Loan]:
    return {lender: Loan(lender, f"jobs/chat-r{to}", gpus, since_s * S)}


def test_a_replica_has_of_its_lenders_what_it_needs_and_no_more() -> None:
    loans = lent("jobs/llama", 1, gpus=8) | lent("jobs/a", 2, since_s=900) | lent("jobs/b", 2, since_s=901)
    loans |= lent("jobs/other", 3) | {"jobs/x": Loan("jobs/x", "jobs/prio", 4, 0)}
    replicas = [replica(1), replica(2), replica(3, ReplicaState.STOPPED)]
    assert borrowed(replicas, loans, 3) == (
        Borrowed("jobs/a", replicas[1].name, 2, 900 * S),
        Borrowed("jobs/b", replicas[1].name, 1, 901 * S),
        Borrowed("jobs/llama", replicas[0].name, 3, 1000 * S),
    )


def test_who_takes_the_place_of_a_borrower_has_what_it_had() -> None:
    """As after an update: the lender waits on."""
    ended = replica(1, ReplicaState.STOPPED)
    (one,) = borrowed([ended, replica(2), replica(3)], lent("jobs/llama", 1), 1)
    assert (one.replica, one.since_unix_ns) == (replica(2).name, 1000 * S)
    assert borrowed([ended], lent("jobs/llama", 1), 1) == ()
    waits = replace(replica(2), state=ReplicaState.REQUESTED, node="")
    assert borrowed([ended, waits], lent("jobs/llama", 1), 1) == ()  # others may get there first
    assert borrowed([replica(0), ended], lent("jobs/llama", 1), 1) == ()


def test_the_youngest_loan_says_how_long_no_replica_goes() -> None:
    loans = borrowed([replica(1), replica(2)], lent("jobs/a", 1, since_s=900) | lent("jobs/b", 2, since_s=950), 2)
    assert kept_until_unix_ns(loans) == (950 + BORROWED_S_MIN) * S
    assert kept_until_unix_ns(()) == 0


def test_what_is_borrowed_is_given_back_first() -> None:
    service = ServiceRecord(CHAT, ServiceSpec(("serve.py",), "/w", max_replicas=9), 0, desired=2)
    plan = reconcile(service, [replica(1), replica(2), replica(3)], World(2000 * S, None, lent("jobs/llama", 1)))
    assert [(one.number, one.state) for one in plan.replicas] == [(1, ReplicaState.DRAINING)]


def test_a_replica_is_not_given_up_soon_after_gpus_were_borrowed_unless_the_user_says_so() -> None:
    """Else a lender would restart again and again for a load that comes and goes."""
    service = ServiceRecord(CHAT, ServiceSpec(("serve.py",), "/w", max_replicas=9), 0, desired=2)
    less = Verdict(Decision(1, "DOWN", "goes from 2 to 1: there is less to do"))

    def judged(service: ServiceRecord, now_s: float) -> ServiceRecord:
        seen = World(round(now_s * S), None, lent("jobs/llama", 2))
        return judge(service, [replica(1), replica(2)], seen, verdict=less, mode=Mode.ACT).service

    soon = judged(service, 1000 + BORROWED_S_MIN - 1)
    assert (soon.desired, soon.cause) == (2, "BORROWED")
    assert soon.decision == (
        "stays at 2: GPUs were borrowed of jobs/llama less than 300 s ago; "
        "what is to come then: goes from 2 to 1: there is less to do"
    )
    assert judged(soon, 1000 + BORROWED_S_MIN - 0.5) == soon  # is not written again
    assert judged(soon, 1000 + BORROWED_S_MIN).desired == 1
    bounded = replace(service, spec=replace(service.spec, max_replicas=1))
    assert judged(bounded, 1010).desired == 1
