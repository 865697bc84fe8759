"""Checks the checkpoints of a job on request, off the loop."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from switchgear.launcher import checkpoints
from switchgear.launcher.checkpoints import Checked, Known
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)


async def verify(directory: Path | None, request: pb.VerifyCheckpoints) -> pb.VerifyResult:
    """Newest first down to the first good one; damaged ones are moved into quarantine. Empty when the job keeps no checkpoints.

    Never raises: recovery waits for the answer, and what went wrong is part of it.
    """
    if directory is None:
        return pb.VerifyResult()
    known = {item.path: Known(item.step, item.digest) for item in request.known}
    try:
        outcome = await asyncio.to_thread(checkpoints.verify_newest, directory, known)
    except Exception as error:  # see above
        log.exception("checkpoints cannot be verified")
        return pb.VerifyResult(error=f"{type(error).__name__}: {error}")
    return pb.VerifyResult(checkpoints=[_to_proto(checked) for checked in outcome.checked])


def _to_proto(checked: Checked) -> pb.CheckpointReport:
    return pb.CheckpointReport(
        path=str(checked.path),
        state=pb.CheckpointReport.CORRUPT if checked.damage else pb.CheckpointReport.VERIFIED,
        step=checked.step,
        size_bytes=checked.size_bytes,
        digest=checked.digest,
        damage=checked.damage,
        quarantine_path="" if checked.quarantine_path is None else str(checked.quarantine_path),
        commit_time_unix_ns=checked.commit_time_unix_ns,
    )
