"""The user's program, looked at before anything is started with it."""

from __future__ import annotations

import os
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
