"""What a replica can do, learned from what replicas did.

A serving engine's iteration takes a fixed time, plus some for each running sequence, plus some for each prompt token that it reads (Vidur,
MLSys '24; Sarathi-Serve, OSDI '24). So the busy seconds of a replica are

    busy = step_s * iterations + sequence_s * generated tokens + token_s * prompt tokens

and the three are a regression over the rows of all replicas. A replica of which this sum is less than its busy time works that much
slower than its peers: throttled, or on a worse GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from switchgear.autoscaler.observation import Engine, ReplicaRow

Reals = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: An engine without chunked prefill reads prompts whole; of those that chunk, 512 is the smallest usual piece.
CHUNK_TOKENS = 512
#: Before anything is measured and nobody says more: the range of a 14B model on one 80 GB GPU.
STEP_S, SEQUENCE_S, TOKEN_S = 0.025, 0.9e-3, 0.2e-3
SEQUENCES_MAX = 64
#: Busy seconds that the guess above weighs, and in which half of what was measured is forgotten.
PRIOR_BUSY_S = 2.0
HALF_LIFE_BUSY_S = 3600.0
#: Busy seconds in an interval below which a row tells nothing, and seconds of rows that make a replica's speed.
BUSY_S_MIN = 0.2
SPEED_BUSY_S = 15.0
#: Busy seconds after which speeds are believed.
KNOWN_BUSY_S = 30.0
#: No engine iterates faster.
STEP_S_MIN = 1e-4
#: The least that the sequences of a full batch take, as a part of an iteration's fixed time.
SHARE_MIN = 0.05
#: Of its time, what a replica works off where the promise says nothing of the pace of tokens.
PACED = 0.9
#: A replica with so many requests waiting, and half as many as run, at both ends of an interval did all it can in it.
FULL_WAITING_MIN, FULL_WAITING = 4, 0.5
#: Seconds of full replicas after which what they did is believed to be the most that they can do, and in which half of it is forgotten.
FULL_S_MIN, FULL_HALF_LIFE_S = 15.0, 120.0
#: A replica this far from its peers does not teach what a replica can do.
ODD = 0.25


@dataclass(frozen=True, slots=True)
class Steps:
    """One replica: seconds of an iteration, for each running sequence, for each prompt token. slots: sequences at once.

    service_s: None, or seconds that a request takes a slot, in a model whose work has no tokens.
    """

    step_s: float
    sequence_s: float
    token_s: float
    slots: int
    chunk_tokens: int = CHUNK_TOKENS
    service_s: float | None = None

    def prompt_s(self, tokens: float) -> float:
        """Of a prompt on an idle replica."""
        return tokens * (self.token_s + self.step_s / self.chunk_tokens)

    def __post_init__(self) -> None:
        # Where sequences cost next to nothing it is the batch that is full: then each is a share of the iterations, and work has a unit.
        object.__setattr__(self, "step_s", max(self.step_s, STEP_S_MIN))
        object.__setattr__(self, "sequence_s", max(self.sequence_s, SHARE_MIN * self.step_s / self.slots))

    def work_s(self, input_tokens: float, output_tokens: float, requests: float = 1.0) -> float:
        """What requests take of a busy replica, beside the iterations themselves; of slots, the share of the replica."""
        if self.service_s is not None:
            return requests * self.service_s / self.slots
        return self.token_s * input_tokens + self.sequence_s * output_tokens

    def capacity(self, tpot_s: float | None, input_per_output: float) -> float:
        """Work that a replica takes in each second so that a token takes at most `tpot_s`, and the batch is not full.

        With arriving work of w a second, iterations settle at step_s / (1 - w): the running sequences grow until they fill them. A full batch
        does `slots` tokens, and reads the prompts of as many, in an iteration. input_per_output: prompt tokens for each generated one.
        """
        if self.service_s is not None:
            return 1.0
        paced = PACED if tpot_s is None else min(0.95, max(0.2, 1 - self.step_s / tpot_s))
        return min(paced, self.full(input_per_output))

    def full(self, input_per_output: float) -> float:
        """Work a second of a replica whose batch is full."""
        batch_s = self.slots * (self.sequence_s + self.token_s * input_per_output)
        return max(1e-6, batch_s / (self.step_s + batch_s)) if batch_s or self.step_s else 1.0


@dataclass(slots=True)
class Learned:
    """Sums of the regression, and the speed of each replica. Everything is JSON-able by `memory`."""

    #: Normal equations over (iterations, generated, prompt tokens), each row scaled to its busy second.
    products: Reals = field(default_factory=lambda: np.zeros((3, 3)))
    targets: Reals = field(default_factory=lambda: np.zeros(3))
    busy_s: float = 0.0
    #: By replica: its speed, and the busy seconds behind that, at most `SPEED_BUSY_S`.
    speeds: dict[str, tuple[float, float]] = field(default_factory=dict)
    coefficients: tuple[float, float, float] = (STEP_S, SEQUENCE_S, TOKEN_S)
    #: Of replicas that did all they can: iterations apart, what they did (generated, prompt tokens), in how many seconds, with how many running.
    full: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    #: Those whose speed is worth a look.
    slow: frozenset[str] = frozenset()
    #: Speed of the faster ones of all replicas.
    usual: float = 1.0
    #: Replicas that had more than they could take.
    fulls: frozenset[str] = frozenset()

    def take(self, rows: Sequence[ReplicaRow], engine: Engine, interval_s: float) -> None:
        """One interval. Replicas that are gone are forgotten."""
        self._take_full(rows, interval_s)
        if len(self.speeds) > len(rows):
            names = {row.name for row in rows}
            self.speeds = {name: kept for name, kept in self.speeds.items() if name in names}
        told = [
            (row.name, row.busy_s, *found)
            for row in rows
            if row.busy_s is not None and row.busy_s >= BUSY_S_MIN and (found := _features(row))
        ]
        if told:
            busy_s = np.array([one[1] for one in told])
            features = np.array([one[2:] for one in told])
            near = self._compare([one[0] for one in told], features @ np.asarray(self.coefficients), busy_s)
            # When most are unlike what was learned, what was learned is of another engine.
            if self.busy_s >= KNOWN_BUSY_S and 2 * near.sum() >= len(near):
                busy_s, features = busy_s[near], features[near]
            self._teach(features, busy_s)
            known = sorted([speed for speed, _ in self.speeds.values()])
            self.usual = min(1.0, known[len(known) * 3 // 4])
        self.coefficients = self._solve(engine)

    def slots(self, engine: Engine) -> int:
        """Sequences that a replica has at once: told, or as many as ran where more waited."""
        if engine.sequences_max is not None:
            return engine.sequences_max
        _, _, seconds, running = self.full
        return max(1, round(running / seconds)) if seconds >= FULL_S_MIN else SEQUENCES_MAX

    def full_work(self, steps: Steps) -> float | None:
        """Work a second of replicas that did all they could; None while none has."""
        generated, prompts, seconds, _ = self.full
        if seconds < FULL_S_MIN:
            return None
        return steps.work_s(prompts, generated) / seconds

    def lacking(self, rows: Sequence[ReplicaRow]) -> float:
        """How many nominal replicas fewer these are than their number says."""
        slow = [row for row in rows if row.sick or row.speed is not None or row.name in self.slow]
        return sum([1 - self.speed(row) for row in slow])

    def speed(self, row: ReplicaRow) -> float:
        """What the replica delivers of a nominal one, 0 to 1; its hardware's word when there is one, else its work's."""
        if row.sick:
            return 0.0
        if row.speed is not None:
            return min(1.0, max(0.0, row.speed))
        seen, weight = self.speeds.get(row.name, (1.0, 0.0))
        if self.busy_s < KNOWN_BUSY_S or weight < SPEED_BUSY_S / 3:
            return 1.0
        # Against the faster ones: when all seem slow, it is the model that is off.
        seen /= max(self.usual, 1e-3)
        return 1.0 if seen > 1 - ODD / 2 else max(0.05, seen)

    def memory(self) -> dict[str, object]:
        """For `restored`."""
        return {
            "products": self.products.tolist(),
            "targets": self.targets.tolist(),
            "busyS": self.busy_s,
            "coefficients": self.coefficients,
            "full": self.full,
        }

    @classmethod
    def restored(cls, memory: Mapping[str, Any]) -> Learned:
        """As it was, speeds apart."""
        step_s, sequence_s, token_s = memory["coefficients"]
        products, targets = (np.asarray(memory[name], dtype=float) for name in ("products", "targets"))
        return cls(
            products,
            targets,
            float(memory["busyS"]),
            coefficients=(step_s, sequence_s, token_s),
            full=tuple(memory["full"]),
        )

    def _take_full(self, rows: Sequence[ReplicaRow], interval_s: float) -> None:
        full = [
            row
            for row in rows
            if row.waiting and row.waiting >= max(FULL_WAITING_MIN, FULL_WAITING * (row.running or 0))
        ]
        still = [row for row in full if row.name in self.fulls and row.decode_tokens is not None]
        self.fulls = frozenset([row.name for row in full])
        if not still:
            return
        fade = 0.5 ** (len(still) * interval_s / FULL_HALF_LIFE_S)
        generated, prompts, seconds, running = (one * fade for one in self.full)
        self.full = (
            generated + sum([row.decode_tokens or 0 for row in still]),
            prompts + sum([row.prefill_tokens or 0 for row in still]),
            seconds + len(still) * interval_s,
            running + sum([row.running or 0 for row in still]) * interval_s,
        )

    def _compare(self, names: Sequence[str], expected_s: Reals, busy_s: Reals) -> Mask:
        """Takes what each did in its busy seconds against what a nominal one takes for it. Returns who is like the others."""
        before = np.array([self.speeds.get(name, (1.0, 0.0)) for name in names])
        # Of the newest seconds alone: a GPU throttles from one moment to the next.
        total_s = before[:, 1] + busy_s
        speeds = (before[:, 0] * before[:, 1] + expected_s) / total_s
        weights = np.minimum(total_s, SPEED_BUSY_S)
        self.speeds.update(zip(names, zip(speeds.tolist(), weights.tolist(), strict=True), strict=True))
        self.slow = frozenset([name for name, (speed, _) in self.speeds.items() if speed < 0.95])
        near: Mask = np.abs(speeds - 1) <= ODD
        return near

    def _teach(self, features: Reals, busy_s: Reals) -> None:
        total_s = float(busy_s.sum())
        fade = 0.5 ** (total_s / HALF_LIFE_BUSY_S)
        self.products = self.products * fade + features.T @ (features / busy_s[:, None])
        self.targets = self.targets * fade + features.sum(axis=0)
        self.busy_s += total_s

    def _solve(self, engine: Engine) -> tuple[float, float, float]:
        guess = _guess(engine)
        # The guess is worth some busy seconds of each kind of work by itself.
        weight = np.diag([PRIOR_BUSY_S / one**2 for one in guess])
        products, targets = self.products + weight, self.targets + weight @ np.asarray(guess)
        left, found = [0, 1, 2], np.zeros(3)
        while left:
            part = np.linalg.solve(products[np.ix_(left, left)], targets[left])
            if (part >= 0).all():
                found[left] = part
                break
            # Least squares that are not negative, over three: what comes out below zero takes no time.
            left = [index for index, value in zip(left, part, strict=True) if value >= 0]
        return (float(found[0]), float(found[1]), float(found[2]))


def _features(row: ReplicaRow) -> tuple[float, float, float] | None:
    if row.decode_tokens is None and row.prefill_tokens is None:
        return None
    decode, prefill = float(row.decode_tokens or 0), float(row.prefill_tokens or 0)
    if row.steps is not None:
        steps = float(row.steps)
    elif row.running:
        steps = decode / row.running
    else:
        return None
    return steps, decode, prefill


def _guess(engine: Engine) -> tuple[float, float, float]:
    step_s = engine.step_s or STEP_S
    sequence_s = engine.step_s_per_sequence or SEQUENCE_S
    token_s = TOKEN_S
    if engine.tokens_per_s is not None:
        # The user's word is of a full batch: iterations and sequences share its time.
        slots = engine.sequences_max or SEQUENCES_MAX
        sequence_s = 0.8 / engine.tokens_per_s
        step_s, token_s = 0.2 * slots / engine.tokens_per_s, 0.1 / engine.tokens_per_s
    if engine.prefill_tokens_per_s is not None:
        token_s = max(1e-7, 1 / engine.prefill_tokens_per_s - step_s / CHUNK_TOKENS)
    return step_s, sequence_s, token_s
