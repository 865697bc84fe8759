"""`switchgear inference scale`: how many replicas services that others run should have, published for an HPA or KEDA."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from switchgear.autoscaler.external import settings
from switchgear.autoscaler.external.main import ScaleSettings, running
from switchgear.cli import exits
from switchgear.cli.output import tell
from switchgear.cli.state import default_state_dir
from switchgear.cli.tls_flags import add_tls_arguments, tls_from
from switchgear.core import loop
from switchgear.core.clock import SystemClock
from switchgear.core.errors import Invalid, Reason
from switchgear.core.metrics import new_registry
from switchgear.core.process import allow_many_open_files, until_signal

DEFAULT_LISTEN = "127.0.0.1:7085"
DEFAULT_METRICS = "127.0.0.1:7086"
EPILOG = f"""a configuration (docs/autoscaling.md has all keys):
  [[service]]
  name = "chat"
  dns = "http://chat-replicas.default.svc:8000/metrics"
  gateway = "http://gateway:9090/metrics"
  min_replicas = 0
  max_replicas = 8
  gpus_per_replica = 4
  cold_start_s = 120
  slo = {{ttft_s = 2, tpot_s = 0.1}}

examples:
  switchgear inference scale --config services.toml
  switchgear inference scale --name chat --endpoints http://h1:8000/metrics,http://h2:8000/metrics --max 2
  switchgear inference scale --name chat --prometheus http://prometheus:9090 --selector '{{app="chat"}}' --engine vllm --max 8

{exits.TABLE}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML: services, each with its replicas and bounds")
    _add_service(parser.add_argument_group("one service, instead of a configuration"))
    parser.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help="where KEDA finds the external scaler (default: %(default)s; port 0: a free one)",
    )
    parser.add_argument(
        "--metrics", default=DEFAULT_METRICS, metavar="HOST:PORT", help="address of /metrics (default: %(default)s)"
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="of decisions and what is learned (default: `scale` in $SWITCHGEAR_STATE_DIR or ~/.local/state/switchgear)",
    )
    add_tls_arguments(
        parser, ca="whose clients alone may ask", certificate="who this process is, to KEDA and Prometheus"
    )


def _add_service(group: argparse._ArgumentGroup) -> None:
    def add(flag: str, key: str, metavar: str, text: str, kind: Any = str) -> None:
        group.add_argument(flag, dest=_PREFIX + key, type=kind, metavar=metavar, help=text)

    add("--name", "name", "NAME", "label of its metrics, and `service` in a ScaledObject")
    add("--endpoints", "endpoints", "URL,URL", "metrics of its replicas", lambda text: tuple(text.split(",")))
    add(
        "--endpoints-file",
        "endpoints_file",
        "FILE",
        "the same as a file of Prometheus' file_sd, which may change",
        Path,
    )
    add("--dns", "dns", "URL", "metrics of its replicas, which are the addresses of the host")
    add("--prometheus", "prometheus.url", "URL", "a Prometheus that scrapes its replicas")
    add("--selector", "prometheus.selector", "{…}", "of their series there, as PromQL has it")
    add("--gateway", "gateway", "URL", "metrics of what holds requests in front of them")
    add("--engine", "engine", "NAME", "kind of inference server (default: seen)")
    add("--policy", "policy", "NAME", "as `switchgear simulate autoscaling --policy` (default: switchgear)")
    add("--interval", "interval_s", "S", "seconds between looks (default: the policy's)", float)
    add("--min", "min_replicas", "N", "least replicas (default: 1)", int)
    add("--max", "max_replicas", "N", "most replicas", int)
    add("--gpus-per-replica", "gpus_per_replica", "K", "(default: 1)", int)
    add("--gpu-budget", "gpu_budget", "N", "GPUs that all replicas may have together (default: as --max has it)", int)
    add("--cold-start", "cold_start_s", "S", "seconds from the wish to the first answer, until measured", float)
    add("--slo-ttft", "slo.ttft_s", "S", "promise: time to first token (default: 2; 0: none)", float)
    add(
        "--slo-prefill-factor",
        "slo.ttft_prefill_factor",
        "X",
        "plus so many times the prompt's own time (default: 3)",
        float,
    )
    add("--slo-tpot", "slo.tpot_s", "S", "promise: seconds for each generated token (default: 0.1; 0: none)", float)
    add("--slo-e2e", "slo.e2e_s", "S", "promise: the whole answer (default: none)", float)
    add("--slo-wait", "slo.wait_s", "S", "promise: until a replica works on it (default: none)", float)
    add("--objective", "slo.objective", "X", "fraction of requests that must keep the promise (default: 0.99)", float)
    add("--token-file", "bearer_token_file", "FILE", "its text is sent to replicas as a bearer token", Path)
    add("--ca", "ca_file", "FILE", "CA of replicas that is believed instead of the system's", Path)


#: Of flags that describe a service: behind it is the key of the configuration.
_PREFIX = "service."


def main(args: argparse.Namespace) -> int:
    """Scales until SIGTERM or SIGINT."""
    scale = ScaleSettings(
        services=_services(args),
        state_dir=(args.state_dir or default_state_dir() / "scale").absolute(),
        listen=args.listen,
        metrics=args.metrics,
        tls=tls_from(args),
    )
    allow_many_open_files()
    loop.run(until_signal(_serve(scale)))
    return exits.OK


async def _serve(scale: ScaleSettings) -> None:
    async with running(scale, SystemClock(), new_registry("scale")) as addresses:
        names = ", ".join(service.name for service in scale.services)
        tell(f"sizing {names}: external scaler at {addresses.grpc}, metrics at {addresses.metrics}")
        await asyncio.Event().wait()


def _services(args: argparse.Namespace) -> Sequence[settings.Service]:
    """Raises Invalid when what is given is not as it should be."""
    flags = {name.removeprefix(_PREFIX): value for name, value in vars(args).items() if name.startswith(_PREFIX)}
    given = {key: value for key, value in flags.items() if value is not None}
    if args.config is None:
        if not given:
            raise Invalid(
                "say which services: --config FILE, or --name, --endpoints and --max of one", Reason.BAD_FIELD
            )
        return settings.of_flags(_nested(given)).service
    if given:
        raise Invalid(
            "a --config has everything about its services; give it alone, or flags of one service", Reason.BAD_FIELD
        )
    return settings.load(args.config).service


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`slo.ttft_s` as a key of the table `slo`."""
    made: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, inner = key.rpartition(".")
        (made.setdefault(table, {}) if table else made)[inner] = value
    return made
