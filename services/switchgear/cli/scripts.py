"""The user's program, looked at before anything is started with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from switchgear.core.errors import Invalid, Reason


def require_script(name: str) -> None:
    """Raises Invalid (SCRIPT_UNREADABLE) unless it is a file that this user can read."""
    script = Path(name)
    if script.is_file() and os.access(script, os.R_OK):
        return
    what = "does not exist" if not script.exists() else "cannot be read" if script.is_file() else "is not a file"
    raise Invalid(
        f"the script {name} {what}; name a Python file that this user can read (its own options go behind it)",
        Reason.SCRIPT_UNREADABLE,
        script=name,
    )


def require_program(name: str) -> None:
    """Raises Invalid (SCRIPT_UNREADABLE) unless it is a program that this user can run, by its path or found in PATH."""
    if shutil.which(name) is None:
        raise Invalid(
            f"there is no program {name} that this user can run; with --no-python the first word is a program, as in `/bin/sh -c …`",
            Reason.SCRIPT_UNREADABLE,
            script=name,
        )
