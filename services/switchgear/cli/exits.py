"""Exit codes of the `switchgear` command: one for each error that a script may want to tell apart."""

from __future__ import annotations

from switchgear.core.errors import Reason

OK = 0
#: The user's job failed; its own error is on the terminal.
JOB_FAILED = 1
#: argparse's own code for a wrong command line, and ours for a wrong value.
USAGE = 2
INTERRUPTED = 130
#: The run has ended and its job has not: it goes on from its newest checkpoint (as EX_TEMPFAIL of sysexits.h).
CONTINUES = 75
#: A file, folder or disk that cannot be read or written.
UNUSABLE_PLACE = 22
INTERNAL = 70

_BY_REASON = {
    Reason.BAD_NAME: USAGE,
    Reason.BAD_FIELD: USAGE,
    Reason.JOB_TOO_LARGE: 10,
    Reason.SCRIPT_UNREADABLE: 11,
    Reason.ADDRESS_IN_USE: 12,
    Reason.STATE_NEWER: 13,
    Reason.SERVER_UNREACHABLE: 14,
    Reason.JOB_ALREADY_RUNNING: 15,
    Reason.STATE_LOCKED: 16,
    Reason.MISSING_EXTRA: 17,
    Reason.INSECURE_BIND: 18,
    Reason.NOT_FOUND: 19,
    Reason.ALREADY_EXISTS: 20,
    Reason.KEY_FILE: UNUSABLE_PLACE,
    Reason.DATABASE_UNUSABLE: 23,
    Reason.UNAUTHENTICATED: 24,
    Reason.ROLE_TOO_LOW: 24,
    Reason.INTERNAL: INTERNAL,
}
#: Refused for a reason that has no code of its own; `--json` names it.
REFUSED = 21

TABLE = """exit codes:
   0  done                               14  control plane not reachable
   1  the job failed by its own error    15  a job of this name runs already
   2  wrong command line or value        16  state directory in use
  10  job larger than the fleet          17  an extra is not installed
  11  script missing or unreadable       18  address needs TLS, keys
  12  address in use                     19  no such resource
  13  state of a newer version           20  name taken
  21  refused for another reason         22  file, folder or disk not usable
  23  database not usable                24  no valid token, or its role is too low
  70  our own error: please report it   130  ended by Ctrl-C, 143: by SIGTERM
  75  out of time or nodes in a Slurm job: goes on from its newest checkpoint"""


def exit_code(reason: Reason) -> int:
    return _BY_REASON.get(reason, REFUSED)
