"""The length of a job's leases: its bounds, and that a job keeps the one that it began with."""

from __future__ import annotations

import argparse

import pytest
from pydantic import TypeAdapter
from recovery_world import World

from switchgear.cli.lease_flags import add_lease_arguments, timing_from
from switchgear.core.errors import Invalid
from switchgear.recovery import model as m
from switchgear.recovery.faults import STOP_S_MAX
from switchgear.recovery.machine import resume


def parsed(*flags: str) -> m.Timing:
    parser = argparse.ArgumentParser()
    add_lease_arguments(parser)
    return timing_from(parser.parse_args(flags))


@pytest.mark.parametrize(
    "flags",
    [
        ("--lease-seconds", "0.9"),
        ("--lease-seconds", "601"),
        ("--lease-seconds", "nan"),
        ("--lease-seconds", "soon"),
        ("--lease-margin-seconds", "2.9"),
        ("--lease-margin-seconds", "inf"),
    ],
)
def test_a_lease_that_cannot_be_kept_is_refused_with_what_to_give(flags: tuple[str, ...]) -> None:
    with pytest.raises(Invalid, match=r"give (one of \d+ to 600|a number of) seconds"):
        parsed(*flags)


def test_flags_win_over_the_environment_and_that_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed() == m.Timing(30, 5)
    monkeypatch.setenv("SWITCHGEAR_LEASE_SECONDS", "4")
    monkeypatch.setenv("SWITCHGEAR_LEASE_MARGIN_SECONDS", "6")
    assert parsed() == m.Timing(4, 6)
    assert parsed("--lease-seconds", "3") == m.Timing(3, 6)


@pytest.mark.parametrize("timing", [m.Timing(1, 3), m.Timing(600, 600)])
def test_a_silent_node_is_given_up_after_the_lease_and_margin_of_its_job(timing: m.Timing) -> None:
    world = World()
    world.state.timing = timing
    world.run_to(10)
    begin_s = world.seconds
    world.happen(m.LauncherSeen("nodes/b", "launcher-nodes/b"))
    world.seconds = begin_s + timing.lease_s + timing.margin_s
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    assert world.state.phase is m.Phase.RUNNING
    world.seconds += 0.1
    world.happen(m.Tick())
    assert world.state.phase is m.Phase.STOPPING


def test_a_node_that_cannot_be_told_to_stop_is_not_taken_for_stuck_while_its_lease_lasts() -> None:
    world = World()
    world.state.timing = m.Timing(600, 5)
    world.run_to(10)
    world.happen(world.exit(0, -9))
    world.stopped("nodes/a")
    world.seconds += STOP_S_MAX + 1
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    assert (world.state.phase, world.state.bad_nodes) == (m.Phase.STOPPING, {})
    world.seconds += 600
    world.happen(m.LauncherSeen("nodes/a", "launcher-nodes/a"), m.Tick())
    assert [call.node for call in world.state.outbox if call.kind == "replace"] == ["nodes/b"]


def test_a_job_keeps_its_timing_over_a_restart_and_one_stored_without_has_the_lease_of_then() -> None:
    job = TypeAdapter(m.JobState)
    stored = job.dump_python(m.JobState("jobs/j", m.Spec(1, 1, 0, ""), 1, timing=m.Timing(3, 4)), mode="json")
    now = m.Now(0, 0)
    assert resume(job.validate_python(stored), now).timing == m.Timing(3, 4)
    del stored["timing"]
    assert resume(job.validate_python(stored), now).timing == m.Timing(30, 5)
