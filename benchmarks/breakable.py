"""The example trainer with the faults of `steps.py` to be asked for: breakable.py FOLDER TRAINER ARGUMENTS. FOLDER has the requests.

They are made from the second step of a process on: a hang before the first step looks like a slow start, which is waited out.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from steps import Told, break_when_asked
from torch.optim.optimizer import register_optimizer_step_pre_hook

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    told, request = Told(folder, rank), folder / f"fault-{rank}"
    steps = 0

    def before_each_step(*_: Any) -> None:
        global steps
        steps += 1
        if steps > 1:
            break_when_asked(request, told)

    register_optimizer_step_pre_hook(before_each_step)
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
