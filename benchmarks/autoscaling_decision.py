"""How long a decision of the autoscaling policy takes, by the size of the fleet.

    python benchmarks/autoscaling_decision.py [--replicas 10,100,1000] [--decisions 200]

Every replica is busy and reports all it can; requests come at 1.1 a second for each. The bar: below 5 ms for 1,000 replicas.
"""

from __future__ import annotations

import argparse
import random
import time

from switchgear.autoscaler.observation import ARRIVALS_MAX, Observation, Phase, ReplicaRow, Work
from switchgear.autoscaler.sizing.policy import Policy

INPUT_TOKENS, OUTPUT_TOKENS = 1100, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", default="10,100,1000")
    parser.add_argument("--decisions", type=int, default=200)
    args = parser.parse_args()
    for replicas in map(int, args.replicas.split(",")):
        took_ms = sorted(times_ms(replicas, args.decisions))
        p50, p95 = took_ms[len(took_ms) // 2], took_ms[len(took_ms) * 95 // 100]
        print(f"{replicas:5} replicas: decision p50 {p50:.2f} ms, p95 {p95:.2f} ms")


def times_ms(replicas: int, decisions: int) -> list[float]:
    draw, policy = random.Random(1), Policy()
    found = []
    for at in range(1, decisions + 1):
        seen = observation(draw, policy.interval_s, replicas)
        begun_s = time.perf_counter()
        policy.decide(at * policy.interval_s, seen)
        found.append(1000 * (time.perf_counter() - begun_s))
    return found


def observation(draw: random.Random, interval_s: float, replicas: int) -> Observation:
    rows = tuple(
        ReplicaRow(
            f"r{number}",
            Phase.READY,
            1000.0,
            waiting=0,
            running=8,
            kv_use=0.3,
            prefill_tokens=3000 + draw.randrange(2000),
            decode_tokens=800,
            busy_s=3.5,
            steps=100 + draw.randrange(20),
        )
        for number in range(replicas)
    )
    requests = round(1.1 * interval_s * replicas)
    entries = min(requests, ARRIVALS_MAX)
    each = requests // entries
    work = Work(requests, requests * INPUT_TOKENS, requests * OUTPUT_TOKENS)
    return Observation(
        interval_s,
        replicas,
        rows,
        max_replicas=10 * replicas,
        queue=Work(0, 0),
        arrived=work,
        arrivals=tuple((interval_s * (1 - at / entries), each, each * INPUT_TOKENS) for at in range(entries)),
        completed=work,
        kept=requests,
        broken=0,
        cold_start_s=120.0,
    )


if __name__ == "__main__":
    main()
