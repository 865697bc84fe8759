"""Which log of the kernel can be read on this node."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from switchgear.agent.sources.journal import JournalLog, has_kernel_messages
from switchgear.agent.sources.log_reader import RECORD_BYTES_MAX, KernelRing, LogReader, TextLog

log = logging.getLogger(__name__)

KMSG = Path("/dev/kmsg")


def open_kernel_log(file: Path | None, kernel_boot_id: str, cursor: str) -> LogReader | None:
    """The kernel's ring; where that may not be read, journald; None where neither can. file: instead of both.

    cursor: where an earlier agent left off, whichever of them it read.
    """
    if file is not None:
        try:
            file.open().close()
        except OSError as error:
            log.warning("%s cannot be read (%s): XIDs and other faults stay unseen until it can", file, error.strerror)
        return TextLog(file, cursor, from_end=True)
    try:
        read_once(KMSG)
        return KernelRing(kernel_boot_id, cursor, KMSG)
    except OSError as error:
        refused = error.strerror
    try:
        journal = JournalLog(cursor)
    except FileNotFoundError:
        log.warning("%s cannot be read (%s): XIDs stay unseen; run as root or give --kernel-log", KMSG, refused)
        return None
    if has_kernel_messages():
        log.info("%s cannot be read (%s): reading the journal instead", KMSG, refused)
    else:
        log.warning(
            "%s cannot be read (%s), and the journal shows no kernel message: XIDs and other faults stay unseen; "
            "run as root or with CAP_SYSLOG, or in the group systemd-journal",
            KMSG,
            refused,
        )
    return journal


def read_once(ring: Path) -> None:
    """Raises OSError: some containers let it be opened and not be read. Through a descriptor of its own, which takes no record away."""
    fd = os.open(ring, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.read(fd, RECORD_BYTES_MAX)
    except (BlockingIOError, BrokenPipeError):  # empty, or written over just now
        pass
    finally:
        os.close(fd)
