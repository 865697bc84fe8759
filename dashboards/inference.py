"""Inference: do users get their answers in time, are there replicas enough, and what do the replicas do."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import GREEN, RED, YELLOW, AnyPanel, Query, board, grown, label_variable, number, quantiles, timeline

_SERVICE = 'service=~"$service"'


def dashboard() -> Dashboard:
    """The dashboard `switchgear-inference`."""
    return board(
        "switchgear-inference",
        "Switchgear / Inference",
        "Requests at the router, the autoscaler's decisions, and the replicas under the metric names of vLLM.",
        [label_variable("service", "switchgear_inference_desired_replicas", "Inference services to show.")],
        [
            ("Overview", _overview()),
            ("Requests", _requests()),
            ("Scaling", _scaling()),
            ("Replicas", _replicas()),
        ],
    )


def _overview() -> list[AnyPanel]:
    return [
        number(
            "Requests",
            "A second, at the routers.",
            Query(f"sum(rate(switchgear_router_requests_total{{{_SERVICE}}}[$__rate_interval]))"),
            unit="reqps",
        ),
        number(
            "Answered well",
            "Share of the requests of the last hour that were answered in time and without an error of ours. The objective is 99 %.",
            Query(f"1 - max(service:switchgear_router_bad_requests:ratio_rate1h{{{_SERVICE}}})"),
            unit="percentunit",
            decimals=2,
            steps=[(0, RED), (0.98, YELLOW), (0.99, GREEN)],
        ),
        number(
            "Error budget burn",
            "How many times faster than allowed the last hour used up the month's budget of bad requests; above 1 it will not last.",
            Query(f"max(service:switchgear_router_bad_requests:ratio_rate1h{{{_SERVICE}}}) / 0.01"),
            unit="short",
            decimals=1,
            steps=[(0, GREEN), (1, YELLOW), (6, RED)],
        ),
        number(
            "Replicas ready",
            "Replicas that take requests now.",
            Query(f'sum(switchgear_inference_replicas{{state="READY", {_SERVICE}}}) or vector(0)'),
            unit="short",
        ),
        number(
            "Replicas desired",
            "What the autoscaler wants. More than ready for long: replicas do not come up, or there is no GPU for them.",
            Query(f"sum(switchgear_inference_desired_replicas{{{_SERVICE}}})"),
            unit="short",
        ),
        number(
            "Requests held",
            "Requests that wait at the routers because no replica is ready: after scaling from zero, at the first start, or when all were lost.",
            Query(f"sum(switchgear_router_held_requests{{{_SERVICE}}})"),
            unit="short",
            steps=[(0, GREEN), (1, YELLOW)],
        ),
    ]


def _requests() -> list[AnyPanel]:
    return [
        timeline(
            "Requests by status",
            "HTTP status that clients got from the routers.",
            Query(
                f"sum by (service, code) (rate(switchgear_router_requests_total{{{_SERVICE}}}[$__rate_interval]))",
                "{{service}} {{code}}",
            ),
            unit="reqps",
            stacked=True,
        ),
        timeline(
            "Latency",
            "From the request's arrival at the router to the whole answer, time held included.",
            *quantiles("switchgear_router_request_seconds", _SERVICE, "service"),
            unit="s",
        ),
        timeline(
            "Late requests",
            "Requests answered, or given up by their client, later than their service promises.",
            Query(
                f"sum by (service) (rate(switchgear_router_late_requests_total{{{_SERVICE}}}[$__rate_interval]))",
                "{{service}}",
            ),
            unit="reqps",
        ),
        timeline(
            "Requests held",
            "Requests that wait at the routers because no replica is ready.",
            Query(f"sum by (service) (switchgear_router_held_requests{{{_SERVICE}}})", "{{service}}"),
            unit="short",
        ),
        timeline(
            "Retries",
            "Requests that a router sent to another replica, because the first one was lost before its answer was whole. Clients see none of it.",
            Query(
                f"sum by (service) (rate(switchgear_router_retries_total{{{_SERVICE}}}[$__rate_interval]))",
                "{{service}}",
            ),
            unit="reqps",
        ),
        timeline(
            "Error budget burn",
            "How many times faster than allowed the budget of bad requests is used up, over a short and a long window. Both above 14.4"
            " raise a critical alert.",
            Query(f"service:switchgear_router_bad_requests:ratio_rate5m{{{_SERVICE}}} / 0.01", "{{service}} 5 min"),
            Query(f"service:switchgear_router_bad_requests:ratio_rate1h{{{_SERVICE}}} / 0.01", "{{service}} 1 h"),
            unit="short",
            steps=[(0, GREEN), (14.4, RED)],
        ),
    ]


def _scaling() -> list[AnyPanel]:
    return [
        timeline(
            "Replicas",
            "Replicas by state, and how many are wanted.",
            Query(f"sum by (service, state) (switchgear_inference_replicas{{{_SERVICE}}})", "{{service}} {{state}}"),
            Query(f"sum by (service) (switchgear_inference_desired_replicas{{{_SERVICE}}})", "{{service}} desired"),
            unit="short",
        ),
        timeline(
            "Demand",
            "Work that comes in, in tokens a second: of prompts, and the most that may be generated.",
            Query(f"sum by (service) (switchgear_inference_demand_tokens_per_second{{{_SERVICE}}})", "{{service}}"),
            unit="short",
        ),
        timeline(
            "Backlog",
            "Tokens of requests that routers hold: of their prompts, and the most that may be generated.",
            Query(f"sum by (service) (switchgear_inference_backlog_tokens{{{_SERVICE}}})", "{{service}}"),
            unit="short",
        ),
        timeline(
            "Decisions",
            "Changes of the desired number in each hour, by direction and by the mode of the policy: only `act` changes anything.",
            Query(
                grown("switchgear_inference_decisions_total", _SERVICE, "service", "direction", "mode"),
                "{{service}} {{direction}} ({{mode}})",
            ),
            unit="short",
            width=12,
        ),
        timeline(
            "Held requests as the autoscaler knows them",
            "The sum of what the routers reported last; one held request starts the first replica at once.",
            Query(f"sum by (service) (switchgear_inference_held_requests{{{_SERVICE}}})", "{{service}}"),
            unit="short",
            width=12,
        ),
        timeline(
            "GPUs of training",
            "GPUs of training jobs that gave way at a checkpoint and wait to have them back.",
            Query(f"sum by (service) (switchgear_inference_borrowed_gpus{{{_SERVICE}}})", "{{service}}"),
            unit="short",
            width=12,
        ),
        timeline(
            "Standoffs",
            "Replicas that wait for what nobody gives by itself, by kind; `switchgear services SERVICE` names the remedy.",
            Query(f"sum by (service, kind) (switchgear_autoscaler_standoff{{{_SERVICE}}})", "{{service}} {{kind}}"),
            unit="short",
            width=12,
        ),
    ]


def _replicas() -> list[AnyPanel]:
    return [
        timeline(
            "Requests running and waiting",
            "In the replicas: running ones are in a batch, waiting ones queue for a place in it.",
            Query(f"sum by (service) (vllm:num_requests_running{{{_SERVICE}}})", "{{service}} running"),
            Query(f"sum by (service) (vllm:num_requests_waiting{{{_SERVICE}}})", "{{service}} waiting"),
            unit="short",
        ),
        timeline(
            "Tokens",
            "Tokens read from prompts and tokens generated, a second.",
            Query(
                f"sum by (service) (rate(vllm:prompt_tokens_total{{{_SERVICE}}}[$__rate_interval]))",
                "{{service}} prompt",
            ),
            Query(
                f"sum by (service) (rate(vllm:generation_tokens_total{{{_SERVICE}}}[$__rate_interval]))",
                "{{service}} generated",
            ),
            unit="cps",
        ),
        timeline(
            "Requests finished",
            "By reason: `stop` and `length` are whole answers.",
            Query(
                f"sum by (service, finished_reason) (rate(vllm:request_success_total{{{_SERVICE}}}[$__rate_interval]))",
                "{{service}} {{finished_reason}}",
            ),
            unit="reqps",
        ),
        timeline(
            "Time to first token",
            "From the request's arrival at the replica to its first token.",
            *quantiles("vllm:time_to_first_token_seconds", _SERVICE, "service"),
            unit="s",
        ),
        timeline(
            "Time between tokens",
            "The pace at which a running request gets its tokens.",
            *quantiles("vllm:inter_token_latency_seconds", _SERVICE, "service"),
            unit="s",
        ),
        timeline(
            "Time in the replica",
            "From the request's arrival at the replica to its last token.",
            *quantiles("vllm:e2e_request_latency_seconds", _SERVICE, "service"),
            unit="s",
        ),
    ]
