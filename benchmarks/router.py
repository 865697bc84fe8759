"""What the router adds to a request: the same replica asked directly and through the router, by turns.

    python benchmarks/router.py [--requests 300] [--json]

The replica answers at once, so that the difference is the router's own time; one client, one request after the other. Then both
are asked by 16 clients at once. Latencies mean something on a quiet machine only; `added_cpu_ms`, the processor time that the
router takes for a request, does on a busy one as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence as Items

import httpx
from prometheus_client import CollectorRegistry

from switchgear.core.clock import SystemClock
from switchgear.serve import completions, http
from switchgear.serve.model import Sequence
from switchgear.serve.proxy import Proxy
from switchgear.serve.replica import ReplicaSettings, serving
from switchgear.serve.switchboard import Limits, Route, ServiceRoutes

CLIENTS = 16


class Echo:
    """Answers with one token, without thinking."""

    end_token: int | None = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Items[int]) -> str:
        return bytes(tokens).decode()

    def next_tokens(self, sequences: Items[Sequence]) -> list[int]:
        return [65] * len(sequences)


async def ask(client: httpx.AsyncClient, address: str) -> float:
    start_s = time.perf_counter()
    body = {"model": "chat", "prompt": "a", "max_tokens": 1, "temperature": 0}
    response = await client.post(f"http://{address}{completions.PATH}", json=body)
    assert response.status_code == 200, response.text
    return time.perf_counter() - start_s


async def throughput(client: httpx.AsyncClient, address: str, requests: int) -> tuple[float, float]:
    """Requests per second, and milliseconds of processor time that one took in this process."""

    async def one_client() -> None:
        for _ in range(requests // CLIENTS):
            await ask(client, address)

    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
    sent = requests // CLIENTS * CLIENTS
    return sent / (time.perf_counter() - start_s), (time.process_time() - start_cpu_s) / sent * 1e3


async def measure(requests: int) -> dict[str, float]:
    proxy = Proxy(Limits(in_flight_per_replica=CLIENTS), CollectorRegistry(), SystemClock(), None)
    listening = http.listening(
        proxy.app(), "127.0.0.1:0", tls=None, client_certificates=False, connections_max=100, grace_s=1
    )
    async with (
        serving(Echo, ReplicaSettings(model="chat", replica="inferenceServices/chat/replicas/1")) as replica,
        listening as router,
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
    ):
        route = Route("inferenceServices/chat/replicas/1", replica.address, draining=False)
        proxy.apply({"inferenceServices/chat": ServiceRoutes(0, [route])})
        for _ in range(20):  # connections, imports, and the loading of the model
            await ask(client, router)
        direct, routed = list[float](), list[float]()
        for _ in range(requests):
            direct.append(await ask(client, replica.address))
            routed.append(await ask(client, router))
        result = {}
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            at = int(share * requests)
            result[f"direct_{name}_ms"] = sorted(direct)[at] * 1e3
            result[f"routed_{name}_ms"] = sorted(routed)[at] * 1e3
        result["added_p50_ms"] = result["routed_p50_ms"] - result["direct_p50_ms"]
        result["direct_per_s"], direct_cpu_ms = await throughput(client, replica.address, requests)
        result["routed_per_s"], routed_cpu_ms = await throughput(client, router, requests)
        result["added_cpu_ms"] = routed_cpu_ms - direct_cpu_ms
    await proxy.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = asyncio.run(measure(args.requests))
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:>16} {value:9.2f}" for name, value in result.items()))
        print("client, router and replica share one process and one core here")


if __name__ == "__main__":
    main()
