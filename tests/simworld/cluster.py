"""The whole simulated cluster around the recovery machine, and what can befall it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from simworld.control import Control
from simworld.kernel import Kernel
from simworld.launcher import SimLauncher, SimNode
from simworld.network import KEEPALIVE_S, Stream
from simworld.promises import Promises
from simworld.scheduler import SimScheduler
from simworld.training import PEER_LOST, File, Gang, Program, SimRank

from switchgear.recovery import model as m

JOB = "jobs/j"


class Cluster:
    """A job of `nnodes` nodes with `nproc` ranks each, on `nodes` nodes. rng: see `Kernel`."""

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        nodes: int = 3,
        nnodes: int = 2,
        nnodes_min: int = 0,
        nproc: int = 2,
        steps: int = 80,
        max_restarts: int = 3,
    ) -> None:
        self.kernel = Kernel(rng)
        #: Lost nodes that nobody brings back.
        self.gone_for_good: set[str] = set()
        self.ranks_cut_off: set[str] = set()
        self.nodes = {f"nodes/{letter}": SimNode(f"nodes/{letter}") for letter in "abcdefgh"[:nodes]}
        self.program = Program(self.kernel, nnodes * nproc, steps)
        self.scheduler = SimScheduler(self.kernel, self.nodes, JOB, nnodes, nnodes_min or nnodes, self._launch)
        self.control = Control(self.kernel, self.scheduler, m.Spec(nnodes, nproc, max_restarts, "checkpoints"))
        self.scheduler.changed = self.control.job_changed
        self.control.is_connected = self.is_connected
        self.promises = Promises(self.kernel, self.program, self.scheduler, self.control)
        self.program.is_reachable = lambda node: node not in self.ranks_cut_off
        self.program.on_step = self._on_step
        self.program.on_commit = self._on_commit
        self.program.on_load = self._on_load
        self.control.start()
        self.scheduler.run()

    @property
    def over(self) -> bool:
        """The job has ended everywhere, down to the last process."""
        return self.control.over and self.scheduler.ended and not self.program.live

    def _launch(self, node: SimNode, epoch: int) -> SimLauncher:
        self.kernel.note(f"{node.name}    launcher starts for placement {epoch}")
        return SimLauncher(self.kernel, node, epoch, self.program, self._connect)

    def _connect(self, node: SimNode, take: Callable[[object], None]) -> Stream | None:
        if not (self.control.alive and node.link.up):
            return None
        stream = Stream(self.kernel, node.link, node.name, take)
        self.control.connect(stream)
        return stream

    def _launcher_of(self, rank: SimRank) -> SimLauncher | None:
        return self.nodes[rank.node].launcher

    def _on_step(self, gang: Gang) -> None:
        for node in self.nodes.values():
            if node.launcher and node.launcher.follows(gang):
                node.launcher.report_progress(gang.generation)

    def _on_commit(self, rank: SimRank, file: File, state: m.CheckpointState) -> None:
        if launcher := self._launcher_of(rank):
            launcher.report_checkpoint(rank.generation, file, state)

    def _on_load(self, rank: SimRank, path: str, step: int) -> None:
        if launcher := self._launcher_of(rank):
            launcher.report_load(rank, path, step)

    # What can befall it.

    def end_rank(self, number: int, code: int = -9, exception: str = "") -> None:
        for rank in self.program.live:
            if rank.rank == number:
                what = f"raises {exception}" if exception else f"ends with {code}"
                self.kernel.note(f"{rank.node}    rank {number} of generation {rank.generation} {what}")
                self.program.end(rank, code, exception)
                return

    def break_step(self, step: int, number: int, exception: str) -> None:
        """From now on that rank fails at that step."""
        self.kernel.note(f"program    rank {number} will raise {exception} at step {step}")
        self.program.raises_at[step] = (number, exception)

    def fail_start(self, name: str, how: str) -> None:
        """The next start there fails; how: as `SimNode.start_failures` has it."""
        self.kernel.note(f"{name}    the next start will fail ({how})")
        self.nodes[name].start_failures.append(how)

    def kill_launcher(self, name: str) -> None:
        if launcher := self.nodes[name].launcher:
            self.kernel.note(f"{name}    launcher killed")
            launcher.die()

    def cut_off(self, name: str, *, ranks_too: bool = True, loud: bool = False) -> None:
        """Nothing arrives at the node or from it; its ranks may have a network of their own.

        loud: the connections that there are end at once, at both ends.
        """
        node = self.nodes[name]
        if not node.link.up:
            return
        how = " with resets" if loud else ""
        self.kernel.note(f"{name}    cut off from {'the network' if ranks_too else 'the control plane'}{how}")
        node.link.up = False
        node.agent_gone_s = self.kernel.now_s + (0.0 if loud else self.kernel.between(*KEEPALIVE_S))
        if node.launcher and node.launcher.stream:
            (node.launcher.stream.break_loudly if loud else node.launcher.stream.break_silently)()
        if ranks_too:
            self.ranks_cut_off.add(name)
            if loud:
                self._peers_notice(name)

    def _peers_notice(self, name: str) -> None:
        """Ranks elsewhere see their connections end, and sometimes those on the node as well."""
        for rank in list(self.program.live):
            if (rank.node != name or self.kernel.chance(0.5)) and not rank.stuck:
                self.kernel.after(self.kernel.between(0.005, 0.5), partial(self.program.end, rank, 1, PEER_LOST))

    def heal(self, name: str) -> None:
        node = self.nodes[name]
        if node.alive and not node.link.up:
            self.kernel.note(f"{name}    network back")
            self.ranks_cut_off.discard(name)
            node.agent_gone_s = None
            node.link.heal(self.kernel)

    def lose(self, name: str, *, loud: bool = False) -> None:
        """Power is gone: every process with it. loud: only the processes are, and the kernel resets their connections."""
        node = self.nodes[name]
        if not node.alive:
            return
        self.cut_off(name, loud=loud)
        self.kernel.note(f"{name}    lost")
        node.alive = False
        if node.launcher:
            node.launcher.vanish()
        for rank in list(node.ranks):
            rank.stuck = ""
            self.program.end(rank, -9)
        node.ranks.clear()
        # What was not on the disk yet.
        if self.kernel.chance(0.5):
            node.disk_generation = 0

    def come_back(self, name: str) -> None:
        node = self.nodes[name]
        if not node.alive:
            self.kernel.note(f"{name}    is back")
            node.alive = True
            self.ranks_cut_off.discard(name)
            node.link.up, node.agent_gone_s = True, None
            node.link.held.clear()

    def get_stuck(self, number: int, how: str) -> None:
        """how: as `SimRank.stuck` has it."""
        for rank in self.program.live:
            if rank.rank == number and not rank.doomed:
                self.kernel.note(f"{rank.node}    rank {number} of generation {rank.generation} is {how}")
                self.program.get_stuck(rank, how)
                return

    def free(self) -> None:
        """Whatever held ranks lets go of them."""
        for rank in list(self.program.live):
            self.program.free(rank)

    def is_connected(self, name: str) -> bool:
        """As the scheduler sees the node's agent."""
        gone_s = self.nodes[name].agent_gone_s
        return gone_s is None or self.kernel.now_s < gone_s

    def scheduler_away(self, seconds: float) -> None:
        self.kernel.note(f"scheduler  away for {seconds:.1f} s")
        self.scheduler.away_until_s = self.kernel.now_s + seconds

    def xid(self, name: str, gpu: int = 0, number: int = 79) -> None:
        """Fatal evidence against a node, as the collector words it."""
        self.kernel.note(f"{name}    xid {number} on gpu {gpu}")
        kind = "GPU_LOST" if number == 79 else "GPU_FAULT"
        evidence = f"Xid {number} on GPU {gpu}"
        self.control.signal(
            m.NodeSignal(name, f"{name}/gpus/{gpu}", kind, evidence, self.kernel.now_ns, simulated=True)
        )

    def repair(self, name: str) -> None:
        """A person has mended the node and returned it to service; a node that is only excluded needs that as well."""
        if name in self.scheduler.cordoned or (name in self.scheduler.excluded and self.scheduler.state == "PENDING"):
            self.kernel.note(f"{name}    repaired and uncordoned")
            self.promises.repaired(name)
            self.scheduler.uncordon(name)

    def poison(self) -> None:
        """The newest checkpoint crashes whoever loads it."""
        for file in self.program.folder.newest()[:1]:
            self.kernel.note(f"storage    {file.path} crashes whoever loads it")
            self.program.poison(file)

    def damage(self, newest: int = 0) -> None:
        """Flips bits in the checkpoint that is so many behind the newest."""
        files = [file for file in self.program.folder.newest() if file.damaged_s is None]
        if newest < len(files):
            self.kernel.note(f"storage    {files[newest].path} is damaged")
            self.program.damage(files[newest])
