"""All that an attempt needs before its ranks can be started, and what becomes of it afterwards."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from switchgear.launcher.attempt import Attempt, LocalRank
from switchgear.launcher.environment import rank_environment
from switchgear.launcher.logs import Echo, LogFolder
from switchgear.launcher.progress import RankProgress
from switchgear.launcher.settings import LauncherSettings
from switchgear.launcher.steplog import StepLog
from switchgear.launcher.steplog_files import StepLogFiles
from switchgear.launcher.zygote import RankSpec
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Preparation:
    """Makes attempts of one job on this node."""

    settings: LauncherSettings
    logs: LogFolder
    step_logs: StepLogFiles
    checkpoint_directory: Path | None

    def problem(self) -> str:
        """What no retry can mend, in one sentence; empty when nothing is wrong."""
        spec, node = self.settings.spec, self.settings.node
        folder, argv = spec.working_directory, spec.argv
        if not Path(folder).is_dir():
            return f"working directory {folder} does not exist on {node}"
        if not argv:
            return "the job names no script"
        if spec.no_python:
            path = {**os.environ, **spec.environment}.get("PATH")
            # As the rank itself will look for it, from its own folder.
            program = argv[0] if os.sep not in argv[0] else str(Path(folder, argv[0]))
            return "" if shutil.which(program, path=path) else f"there is no program {argv[0]} on {node}"
        if argv[0] != "-m" and not Path(folder, argv[0]).is_file():
            return f"script {Path(folder, argv[0])} does not exist on {node}"
        return ""

    def attempt(self, generation: int, start: pb.StartAttempt) -> tuple[Attempt, list[RankSpec]]:
        """Makes the log files and step logs of all local ranks; returns what follows the ranks, and what they are started with.

        Raises OSError when a file cannot be made.
        """
        known = {Path(item.path): item.step for item in start.known_steps}
        if start.resume_path and start.HasField("resume_step"):
            known[Path(start.resume_path)] = start.resume_step
        attempt = Attempt(generation, {}, self.logs)
        specs: list[RankSpec] = []
        try:
            for local_rank in range(self.settings.spec.nproc_per_node):
                rank = start.first_rank + local_rank
                self.logs.prepare(generation, rank)
                path = self.step_logs.create(generation, rank)
                progress = RankProgress(
                    StepLog(path),
                    self.checkpoint_directory,
                    known,
                    start.high_water_step,
                    resumed=bool(start.resume_path),
                    first=generation == 1 and start.high_water_step == 0,
                )
                attempt.ranks[rank] = LocalRank(rank, local_rank, progress)
                if self.settings.echo:
                    shown = self.settings.echo.streams(local_rank)
                    attempt.ranks[rank].echoes = [
                        Echo(self.logs.path(generation, rank, stream), rank, getattr(sys, stream)) for stream in shown
                    ]
                specs.append(self._spec(generation, start, local_rank, path))
        except OSError:
            attempt.close()
            raise
        return attempt, specs

    def put_away(self, generation: int) -> None:
        """Takes an ended attempt's step logs out of memory and removes the oldest logs."""
        try:
            self.step_logs.archive(generation)
            self.logs.prune(generation)
        except OSError as error:
            log.warning("cannot archive step logs: %s", error)

    def _spec(self, generation: int, start: pb.StartAttempt, local_rank: int, step_log: Path) -> RankSpec:
        spec = self.settings.spec
        rank = start.first_rank + local_rank
        directory = str(self.checkpoint_directory or "")
        return RankSpec(
            rank=rank,
            generation=generation,
            argv=tuple(spec.argv),
            env=rank_environment(
                os.environ,
                spec,
                start,
                job=self.settings.job,
                generation=generation,
                local_rank=local_rank,
                gpu_indices=self.settings.gpu_indices,
                checkpoint_directory=directory,
                error_file=str(self.logs.path(generation, rank, "error").absolute()),
                address=self.settings.address,
                autoscaler=self.settings.autoscaler,
            ),
            cwd=spec.working_directory,
            stdout=str(self.logs.path(generation, rank, "stdout").absolute()),
            stderr=str(self.logs.path(generation, rank, "stderr").absolute()),
            step_log=str(step_log.absolute()),
            checkpoint_directory=directory,
            program=spec.no_python,
        )
