"""What becomes of a node that a run had to give up, in a real Slurm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_cluster import SlurmCluster

from switchgear.cli.slurm.drain import Drains
from switchgear.core.modes import Mode
from switchgear.slurm.commands import Commands

LINE = "scontrol update nodename=n2 state=drain reason='switchgear: contact with nodes/n2 was lost'"


class Lost:
    """A run that has lost n2."""

    def __init__(self, slurm: SlurmCluster, mode: Mode) -> None:
        self._slurm, self.said = slurm, list[str]()
        self._drains = Drains(Commands(slurm_conf=str(slurm.configuration), timeout_s=5), mode, self.said.append)

    async def ends(self) -> str:
        """Why n2 is closed, in Slurm's word."""
        for _ in range(2):  # recovery may say it twice
            self._drains.put("n2", "contact with nodes/n2 was lost")
        await self._drains.finish()
        await self._drains.finish()
        return self._slurm.command("sinfo", "--list-reasons", "--noheader", "--Node", "--format=%E", "--nodes=n2")


async def test_a_policy_that_acts_drains_it_once_with_the_reason(slurm: SlurmCluster) -> None:
    lost = Lost(slurm, Mode.ACT)
    assert await lost.ends() == "switchgear: contact with nodes/n2 was lost"
    assert lost.said == ["switchgear: n2 is drained: switchgear: contact with nodes/n2 was lost"]


async def test_a_policy_that_advises_tells_the_command_which_works_as_it_stands(slurm: SlurmCluster) -> None:
    lost = Lost(slurm, Mode.ADVISE)
    assert await lost.ends() == ""
    assert lost.said == [f"switchgear: advice: {LINE}"]
    slurm.command("sh", "-c", LINE)
    assert await Lost(slurm, Mode.OBSERVE).ends() == "switchgear: contact with nodes/n2 was lost"


async def test_a_policy_that_is_off_does_and_says_nothing(slurm: SlurmCluster) -> None:
    lost = Lost(slurm, Mode.OBSERVE)
    assert (await lost.ends(), lost.said) == ("", [])


async def test_a_drain_made_by_hand_keeps_its_reason(slurm: SlurmCluster) -> None:
    slurm.command("scontrol", "update", "nodename=n2", "state=drain", "reason=new fans")
    lost = Lost(slurm, Mode.ACT)
    assert (await lost.ends(), lost.said) == ("new fans", [])


@pytest.fixture
def without_controller(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    slurm.stop_controller()
    yield slurm
    slurm.start_controller()


async def test_while_slurm_does_not_answer_the_command_is_told(without_controller: SlurmCluster) -> None:
    said: list[str] = []
    drains = Drains(Commands(slurm_conf=str(without_controller.configuration), timeout_s=1), Mode.ACT, said.append)
    drains.put("n2", "contact with nodes/n2 was lost")
    await drains.finish()
    assert said == [f"switchgear: Slurm does not answer; advice: {LINE}"]
