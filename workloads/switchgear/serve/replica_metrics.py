"""Metrics of a replica, under vLLM's names, so that dashboards and autoscalers made for vLLM understand them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from switchgear.serve.batching import FinishReason

_LABEL = ["model_name"]
# vLLM's own bounds, cut to what is observed here.
_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120)


class ReplicaMetrics:
    """vllm:kv_cache_usage_perc is absent, since the engine has no cache of which it could tell the truth."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, _LABEL, registry=registry).labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABEL, registry=registry).labels(model)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, _LABEL, buckets=buckets, registry=registry).labels(model)

        self.running = gauge("vllm:num_requests_running", "Requests in the batch of the model")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests that wait for room in the batch")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of the prompts that were taken into the batch")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens that were generated")
        self.first_token = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token", _REQUEST_BUCKETS
        )
        self.inter_token = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a request", _TOKEN_BUCKETS
        )
        self.end_to_end = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the whole answer", _REQUEST_BUCKETS
        )
        success = Counter(
            "vllm:request_success", "Requests that ended, by why", [*_LABEL, "finished_reason"], registry=registry
        )
        self.success = {reason: success.labels(model, reason.value) for reason in FinishReason}
