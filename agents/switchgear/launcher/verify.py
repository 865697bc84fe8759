"""Checks the checkpoints of a job on request, off the loop."""

from __future__ import annotations

import logging
from pathlib import Path

from switchgear.launcher import checkpoints
from switchgear.launcher.checkpoints import Checked, Known
from switchgear.launcher.disk import DiskThread
from switchgear.v1alpha import launcher_service_pb2 as pb

log = logging.getLogger(__name__)


async def verify(disk: DiskThread, directory: Path | None, request: pb.VerifyCheckpoints) -> pb.VerifyResult:
    """Newest first down to the first good one; damaged ones are moved into quarantine. Empty when the job keeps no checkpoints.

    Never raises: recovery waits for the answer, and what went wrong is part of it. A folder that exists and cannot be listed is an
    error and not empty, for then training would begin anew.
    """
    if directory is None:
        return pb.VerifyResult()
    known = {item.path: Known(item.step, item.digest) for item in request.known}
    try:
        outcome = await disk.run(checkpoints.verify_newest, directory, known, frozenset(request.skip_digests))
        return pb.VerifyResult(checkpoints=[_to_proto(checked) for checked in outcome.checked])
    except OSError as error:
        return pb.VerifyResult(
            error=f"checkpoint folder {directory} cannot be listed: {checkpoints.errno_text(error)}; "
            "mount it again or let the job's user read it, then submit the job again"
        )
    except Exception as error:  # see above
        log.exception("checkpoints cannot be verified")
        return pb.VerifyResult(error=f"{type(error).__name__}: {error}")


def _to_proto(checked: Checked) -> pb.CheckpointReport:
    return pb.CheckpointReport(
        path=str(checked.path),
        state=pb.CheckpointReport.CORRUPT if checked.damage else pb.CheckpointReport.VERIFIED,
        step=checked.step,
        size_bytes=checked.size_bytes,
        digest=checked.digest,
        # It may quote a name from inside a folder, which can be any bytes.
        damage=checked.damage.encode("utf-8", "replace").decode(),
        quarantine_path="" if checked.quarantine_path is None else str(checked.quarantine_path),
        commit_time_unix_ns=checked.commit_time_unix_ns,
    )
