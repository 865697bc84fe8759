"""Expected tasks by what they need of a node: the shapes that its room is counted in."""

from __future__ import annotations

import numpy as np

from switchgear.planner.fleet import Ints, Reals
from switchgear.planner.mix import Classes

#: The most frequent shapes: rating a node takes time in proportion, and the rest of a mix is a few percent of it.
SHAPES_MAX = 128


class Shapes:
    """Tasks on GPUs that differ in CPU, GPUs or share; memory is the mean of those that are alike otherwise. One entry each.

    weight: shape (models, shapes): of all expected tasks, the part that has this shape and accepts this model. So models that are asked for
    cost nothing, they only differ in this table.
    """

    def __init__(self, classes: Classes, models: tuple[str, ...]) -> None:
        on_gpus = np.flatnonzero(classes.gpus > 0)
        key = np.column_stack([classes.cpu_milli, classes.gpus, classes.gpu_milli])[on_gpus]
        _, first, of = np.unique(key, axis=0, return_index=True, return_inverse=True)
        of = of.ravel()
        weight = classes.weight[on_gpus]
        total = np.bincount(of, weight, minlength=len(first))
        memory = np.bincount(of, weight * classes.memory_mib[on_gpus], minlength=len(first))
        kept = np.argsort(-total, kind="stable")[:SHAPES_MAX]
        example = on_gpus[first[kept]]
        #: At least one of each, since they are divided by.
        self.cpu_milli: Reals = np.maximum(1.0, classes.cpu_milli[example])
        self.memory_mib: Reals = np.maximum(1.0, memory[kept] / total[kept])
        self.gpus: Ints = classes.gpus[example]
        self.gpu_milli: Ints = classes.gpu_milli[example]
        self.weight: Reals = np.array(
            [
                np.bincount(of, weight * _accepting(classes, model)[on_gpus], minlength=len(first))[kept]
                for model in models
            ]
        ).reshape(len(models), len(kept))


def _accepting(classes: Classes, model: str) -> Reals:
    return np.array([not accepted or model in accepted for accepted in classes.models], np.float64)
