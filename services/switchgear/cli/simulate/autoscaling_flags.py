"""Flags of `switchgear simulate autoscaling`: which requests, under which conditions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from switchgear.autoscaler.observation import Slo
from switchgear.autoscaler.simulate.conditions import Blindness, Conditions, Throttle
from switchgear.autoscaler.simulate.rates import sample
from switchgear.autoscaler.simulate.replica import ServiceModel
from switchgear.autoscaler.simulate.synthetic import PREFIX, synthetic
from switchgear.autoscaler.simulate.trace import Rates, Trace, read
from switchgear.core.errors import Invalid, Reason

_MODEL = ServiceModel()
#: Beyond it a start without a cold start would be tried for ever.
FAIL_MAX = 0.9
#: What a policy decides of each few seconds ends within hours.
DAYS_MAX = 366
COLD_START_S_MAX = 7 * 86400.0
#: A start that takes 20 times the median, or a twentieth of it, every third time.
JITTER_MAX = 3.0
REPLICAS_MAX = 10_000


def add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--trace",
        required=True,
        metavar="FILE",
        help="CSV t_s,input_tokens,output_tokens or t_s,service_s or t_s,rate_rps; or JSON lines of Mooncake; or a decision log; plain or gzip; or synthetic:NAME[:SEED]",
    )
    group.add_argument("--start", type=_from_zero, default=0.0, metavar="S", help="leave out what came before")
    group.add_argument("--duration", type=_positive, default=math.inf, metavar="S", help="and what came so much later")
    group.add_argument("--speed", type=_positive, default=1.0, metavar="X", help="compress time (default: %(default)g)")
    group.add_argument("--scale", type=_positive, default=1.0, metavar="X", help="of a trace of rates: so many times")
    group.add_argument("--lengths", type=Path, metavar="FILE", help="of a trace of rates: draw tokens of this trace")
    group.add_argument("--seed", type=_whole, default=0, help="of starts and of drawn requests (default: %(default)d)")


def add_conditions(parser: argparse.ArgumentParser) -> None:
    promise = parser.add_argument_group("the promise (0: no such limit)")
    promise.add_argument("--objective", type=_fraction, default=0.99, metavar="F", help="of requests (default: 0.99)")
    promise.add_argument(
        "--slo-ttft", type=_from_zero, default=2.0, metavar="S", help="to the first token (default: 2)"
    )
    promise.add_argument(
        "--slo-prefill-factor",
        type=_from_zero,
        default=3.0,
        metavar="X",
        help="and so many times what its own prompt takes on an idle replica (default: 3)",
    )
    promise.add_argument(
        "--slo-tpot", type=_from_zero, default=0.1, metavar="S", help="then for each token (default: 0.1)"
    )
    promise.add_argument("--slo-e2e", type=_from_zero, default=0.0, metavar="S", help="to the whole answer")
    promise.add_argument("--slo-wait", type=_from_zero, default=0.0, metavar="S", help="until a replica begins")
    fleet = parser.add_argument_group("replicas")
    fleet.add_argument(
        "--cold-start", type=_cold_start, default=30.0, metavar="S", help="median of a start (default: 30)"
    )
    fleet.add_argument("--cold-jitter", type=_jitter, default=0.0, metavar="X", help="sigma of its logarithm")
    fleet.add_argument("--cold-fail", type=_share, default=0.0, metavar="F", help="starts that fail, at their end")
    fleet.add_argument(
        "--initial", type=_initial, metavar="N", help="READY at the start (default: auto, what static peak has)"
    )
    fleet.add_argument("--min", type=_whole, default=0, metavar="N", help="replicas (default: 0)")
    fleet.add_argument("--max", type=_replicas, default=1000, metavar="N", help="replicas (default: 1000)")
    fleet.add_argument("--gpus-per-replica", type=from_one, default=1, metavar="N", help="default: 1")
    model = parser.add_argument_group("one replica")
    for flag, default, text in (
        ("--prefill-ms-per-token", _MODEL.prefill_s_per_token * 1e3, "of the GPU, beside the rest of an iteration"),
        ("--step-ms", _MODEL.step_s * 1e3, "an iteration without prefill"),
        ("--step-ms-per-sequence", _MODEL.step_s_per_sequence * 1e3, "and for each running sequence"),
    ):
        model.add_argument(flag, type=_from_zero, default=default, metavar="MS", help=f"{text} (default: %(default)g)")
    for flag, number, text in (
        ("--chunk-tokens", _MODEL.chunk_tokens, "of a prompt in one iteration"),
        ("--sequences-max", _MODEL.sequences_max, "running at once"),
        ("--kv-tokens", _MODEL.kv_tokens, "of the cache"),
        ("--concurrency", 1, "of a model without tokens: requests at once"),
    ):
        model.add_argument(flag, type=from_one, default=number, metavar="N", help=f"{text} (default: %(default)d)")
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--throttle-at", type=_from_zero, metavar="S", help="half of the READY replicas fall to half speed"
    )
    faults.add_argument("--throttle-told", action="store_true", help="and health tells of it")
    faults.add_argument("--blind-at", type=_from_zero, metavar="S", help="the metrics vanish for good")
    faults.add_argument(
        "--blind-silently", action="store_true", help="and read as nothing done, as a missing series may"
    )


def trace_of(args: argparse.Namespace) -> Trace:
    """Raises Invalid when it is no trace; OSError when it cannot be read."""
    found = _whole_trace(args).part(args.start, args.duration, args.speed)
    days = float(found.arrival_s[-1]) / 86400
    if days > DAYS_MAX:
        raise Invalid(
            f"{found.name} goes on for {days:.3g} days, and at most {DAYS_MAX} can be run; are its times in seconds? "
            f"If so, cut it with --start and --duration",
            Reason.LIMIT_EXCEEDED,
        )
    return found


def _whole_trace(args: argparse.Namespace) -> Trace:
    found = synthetic(args.trace) if args.trace.startswith(PREFIX) else read(Path(args.trace))
    if isinstance(found, Rates):
        lengths = read(args.lengths) if args.lengths else None
        if isinstance(lengths, Rates):
            raise Invalid("--lengths names a file of rates; name one of requests", Reason.BAD_FIELD)
        return sample(found, args.scale, args.seed, lengths)
    if args.scale != 1:
        raise Invalid("--scale is for rates; requests can be compressed in time with --speed", Reason.BAD_FIELD)
    if args.lengths:
        raise Invalid("--lengths is for rates; these requests have lengths of their own", Reason.BAD_FIELD)
    return found


def conditions_of(args: argparse.Namespace, trace: Trace) -> Conditions:
    """Without `--initial`, one replica is READY at the start: the caller knows better.

    Raises Invalid when the flags contradict each other.
    """
    if args.min > args.max:
        raise Invalid(f"--min {args.min} is above --max {args.max}", Reason.BAD_FIELD)
    if args.throttle_told and args.throttle_at is None:
        raise Invalid("--throttle-told says how; give --throttle-at as well, which says when", Reason.BAD_FIELD)
    if args.blind_silently and args.blind_at is None:
        raise Invalid("--blind-silently says how; give --blind-at as well, which says when", Reason.BAD_FIELD)
    initial = 1 if args.initial is None else args.initial
    if not args.min <= initial <= args.max and args.initial is not None:
        raise Invalid(f"--initial {initial} is not within --min {args.min} and --max {args.max}", Reason.BAD_FIELD)
    return Conditions(
        model=_model(args, trace),
        slo=_slo(args, trace),
        cold_start_s=args.cold_start,
        cold_jitter=args.cold_jitter,
        cold_fail=args.cold_fail,
        seed=args.seed,
        initial=initial,
        min_replicas=args.min,
        max_replicas=args.max,
        gpus_per_replica=args.gpus_per_replica,
        start_unix_s=trace.start_unix_s,
        throttle=None if args.throttle_at is None else Throttle(args.throttle_at, told=args.throttle_told),
        blindness=None if args.blind_at is None else Blindness(args.blind_at, math.inf, told=not args.blind_silently),
    )


def _model(args: argparse.Namespace, trace: Trace) -> ServiceModel:
    if trace.in_seconds:
        return ServiceModel.of_slots(args.concurrency)
    if not (args.step_ms or args.step_ms_per_sequence):
        raise Invalid("--step-ms and --step-ms-per-sequence are both 0; an iteration takes time", Reason.BAD_FIELD)
    return ServiceModel(
        args.prefill_ms_per_token / 1e3,
        args.chunk_tokens,
        args.step_ms / 1e3,
        args.step_ms_per_sequence / 1e3,
        args.sequences_max,
        args.kv_tokens,
    )


def _slo(args: argparse.Namespace, trace: Trace) -> Slo:
    """Of a model without tokens, the first token is the begin of the work."""
    e2e_s, wait_s = args.slo_e2e or None, args.slo_wait or None
    if not trace.in_seconds:
        ttft_s, tpot_s = args.slo_ttft or None, args.slo_tpot or None
        return Slo(args.objective, ttft_s, args.slo_prefill_factor, tpot_s, e2e_s, wait_s)
    if wait_s is None and e2e_s is None:
        wait_s = args.slo_ttft or None
    return Slo(args.objective, ttft_s=None, ttft_prefill_factor=0.0, tpot_s=None, e2e_s=e2e_s, wait_s=wait_s)


def _number(text: str, allows: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and allows(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
    return value


def _from_zero(text: str) -> float:
    return _number(text, lambda value: value >= 0, "number from 0 on")


def _positive(text: str) -> float:
    return _number(text, lambda value: value > 0, "number above 0")


def _fraction(text: str) -> float:
    return _number(text, lambda value: 0 < value < 1, "number between 0 and 1")


def _share(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= FAIL_MAX, f"number from 0 to {FAIL_MAX:g}")


def _cold_start(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= COLD_START_S_MAX, f"number from 0 to {COLD_START_S_MAX:g}")


def _jitter(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= JITTER_MAX, f"number from 0 to {JITTER_MAX:g}")


def _replicas(text: str) -> int:
    what = f"whole number from 1 to {REPLICAS_MAX}"
    return int(_number(text, lambda value: 1 <= value <= REPLICAS_MAX and value == int(value), what))


def _whole(text: str) -> int:
    return int(_number(text, lambda value: value >= 0 and value == int(value), "whole number from 0 on"))


def from_one(text: str) -> int:
    return int(_number(text, lambda value: value >= 1 and value == int(value), "whole number from 1 on"))


def _initial(text: str) -> int | None:
    return None if text == "auto" else _whole(text)
