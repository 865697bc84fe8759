"""GPUs of a node that the expected tasks could use: the measure of FGD (Weng et al., USENIX ATC 2023)."""

from __future__ import annotations

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.mix import Classes
from switchgear.planner.model import WHOLE


class Usable:
    """Idle thousandths of GPUs less those that a task drawn from the mix could not use, in expectation.

    For a task of one GPU or a share that has its CPUs, a GPU counts with all that is free when that is enough, so the sum over GPUs is a table
    by (model, CPU, free share); for several GPUs it is one by (model, CPU, whole GPUs). Hence a node costs a look-up for each of its GPUs and
    one more, however many classes the mix has.
    """

    def __init__(self, classes: Classes, models: tuple[str, ...], most: int) -> None:
        """most: GPUs of a node."""
        some = np.flatnonzero((classes.gpus > 0) & (classes.gpus <= most))
        self._cpu_levels = np.unique(classes.cpu_milli[some])
        cpu = np.searchsorted(self._cpu_levels, classes.cpu_milli[some]) + 1
        gpus, milli, weight = classes.gpus[some], classes.gpu_milli[some], classes.weight[some]
        sizes = np.unique(milli)
        #: By thousandths free: how many sizes fit.
        self._sizes = np.searchsorted(sizes, np.arange(WHOLE + 1), side="right")
        one = np.zeros((len(models), len(self._cpu_levels) + 1, len(sizes) + 1))
        many = np.zeros((len(models), len(self._cpu_levels) + 1, most + 1))
        for number, model in enumerate(models):
            may = np.array([not accepted or model in accepted for accepted in classes.models], bool)[some]
            single = may & (gpus == 1)
            np.add.at(one[number], (cpu[single], np.searchsorted(sizes, milli[single]) + 1), weight[single])
            several = may & (gpus > 1)
            np.add.at(many[number], (cpu[several], gpus[several]), weight[several])
        #: Weight of the classes that fit.
        self._one: Reals = one.cumsum(axis=1).cumsum(axis=2)
        self._many: Reals = many.cumsum(axis=1).cumsum(axis=2) * (WHOLE * np.arange(most + 1))

    def __call__(self, model: Ints, cpu_milli: Ints, gpu_milli: Ints, whole: Ints) -> Reals:
        """model, cpu_milli, whole (GPUs of which nothing is taken): shape (rows,); gpu_milli: free of each GPU, shape (rows, GPUs)."""
        cpu = np.searchsorted(self._cpu_levels, cpu_milli, side="right")
        fitting = self._one[model[:, None], cpu[:, None], self._sizes[gpu_milli]]
        found: Reals = np.einsum("rg,rg->r", fitting, gpu_milli) + self._many[model, cpu, whole]
        return found
