"""The metrics of inference servers: one table of facts, with how each was checked.

A name that changed between versions has both, the newer one first. What a server does not tell has no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from switchgear.autoscaler.adapters.model import Combine, Kind, Quantity, Series, Server

_US, _MS = 1e-6, 1e-3
#: metrics_report_interval_ms of Ray, by default.
_RAY_S = 10.0
Q = Quantity
_Facts = Mapping[Quantity, tuple[Series, ...]]


def _gauge(name: str, *, where: tuple[str, tuple[str, ...]] | None = None, since: str = "", until: str = "") -> Series:
    return Series(name, Kind.GAUGE, where=where, since=since, until=until)


def _ratio(name: str, *, where: tuple[str, tuple[str, ...]] | None = None, since: str = "", until: str = "") -> Series:
    return Series(name, Kind.GAUGE, where=where, combine=Combine.MEAN, since=since, until=until)


def _counter(
    name: str, *, where: tuple[str, tuple[str, ...]] | None = None, since: str = "", until: str = ""
) -> Series:
    return Series(name, Kind.COUNTER, where=where, since=since, until=until)


def _histogram(name: str, *, unit: float = 1.0, since: str = "", until: str = "") -> Series:
    return Series(name, Kind.HISTOGRAM, unit=unit, since=since, until=until)


def _seconds(name: str, unit: float, per: Quantity) -> Series:
    return Series(name, Kind.SUM, unit=unit, per=per)


_ENDED_ILL = ("finished_reason", ("abort", "error"))

_VLLM: _Facts = {
    Q.WAITING: (_gauge("vllm:num_requests_waiting"),),
    Q.RUNNING: (_gauge("vllm:num_requests_running"),),
    Q.KV_USE: (
        _ratio("vllm:kv_cache_usage_perc", since="0.9"),
        _ratio("vllm:gpu_cache_usage_perc", until="0.10"),
    ),
    Q.TTFT: (_histogram("vllm:time_to_first_token_seconds"),),
    Q.TPOT: (
        _histogram("vllm:request_time_per_output_token_seconds"),
        _histogram("vllm:inter_token_latency_seconds", since="0.11"),
        _histogram("vllm:time_per_output_token_seconds", until="0.12"),
    ),
    Q.E2E: (_histogram("vllm:e2e_request_latency_seconds"),),
    Q.QUEUE_TIME: (_histogram("vllm:request_queue_time_seconds"),),
    Q.COMPLETED: (Series("vllm:request_success_total", Kind.COUNTER, without=_ENDED_ILL),),
    Q.FAILED: (_counter("vllm:request_success_total", where=_ENDED_ILL),),
    Q.PROMPT_TOKENS: (_counter("vllm:prompt_tokens_total"),),
    Q.GENERATED_TOKENS: (_counter("vllm:generation_tokens_total"),),
    Q.REQUEST_INPUT: (_counter("vllm:request_prompt_tokens_sum"),),
    Q.REQUEST_OUTPUT: (_counter("vllm:request_generation_tokens_sum"),),
    Q.STEPS: (_counter("vllm:iteration_tokens_total_count"),),
    Q.KV_TOKENS: (Series("vllm:cache_config_info", Kind.GAUGE, product=("num_gpu_blocks", "block_size")),),
    Q.AWAKE: (_ratio("vllm:engine_sleep_state", where=("sleep_state", ("awake",))),),
}


def _under_ray(facts: _Facts) -> _Facts:
    """Ray knows no colon in a name and puts `ray_` before it."""
    return {
        quantity: tuple(replace(one, name="ray_" + one.name.replace(":", "_")) for one in series)
        for quantity, series in facts.items()
    }


_OURS = (
    *(Q.WAITING, Q.RUNNING, Q.TTFT, Q.TPOT, Q.E2E, Q.COMPLETED, Q.FAILED),
    *(Q.PROMPT_TOKENS, Q.GENERATED_TOKENS),
)

_TRITON: _Facts = {
    Q.WAITING: (_gauge("nv_inference_pending_request_count"),),
    Q.TTFT: (_histogram("nv_inference_first_response_histogram_ms", unit=_MS),),
    Q.E2E: (
        _histogram("nv_inference_request_summary_us", unit=_US),
        _seconds("nv_inference_request_duration_us", _US, Q.COMPLETED),
    ),
    Q.QUEUE_TIME: (
        _histogram("nv_inference_queue_summary_us", unit=_US),
        _seconds("nv_inference_queue_duration_us", _US, Q.COMPLETED),
    ),
    Q.COMPLETED: (_counter("nv_inference_request_success"),),
    Q.FAILED: (_counter("nv_inference_request_failure"),),
    Q.STEPS: (_counter("nv_inference_exec_count"),),
}
_TRITON_ON: Mapping[Quantity | None, str] = {
    None: "start tritonserver without --allow-metrics=false",
    Q.TTFT: "--metrics-config histogram_latencies=true, of decoupled models; Triton 2.51 does not have it yet",
    Q.WAITING: "tritonserver 23.04 or newer",
}


def _bento(prefix: str) -> Mapping[Quantity, Series]:
    return {
        Q.RUNNING: _gauge(f"{prefix}_request_in_progress"),
        Q.E2E: _histogram(f"{prefix}_request_duration_seconds"),
        Q.COMPLETED: _counter(f"{prefix}_request_total", where=("http_response_code", ("2",))),
        Q.FAILED: _counter(f"{prefix}_request_total", where=("http_response_code", ("5",))),
    }


_BENTO_NEW, _BENTO_OLD = _bento("bentoml_service"), _bento("bentoml_api_server")

SERVERS: tuple[Server, ...] = (
    Server(
        "vllm",
        "vLLM",
        _VLLM,
        "vllm/v1/metrics/loggers.py of 0.10 and of 2026, read",
        port=8000,
        switch_on={
            None: "start vllm serve without --disable-log-stats",
            Q.AWAKE: "vLLM 0.11 or newer with --enable-sleep-mode",
        },
    ),
    Server(
        "switchgear",
        "switchgear.serve",
        {quantity: _VLLM[quantity] for quantity in _OURS},
        "live",
        mark=("switchgear_build_info", "component", "replica"),
        version=("switchgear_build_info", "version"),
    ),
    Server(
        "ray-vllm",
        "vLLM under Ray",
        _under_ray(_VLLM),
        "vllm/v1/metrics/ray_wrappers.py of 2026, read; the prefix is that of Ray, live",
        port=8080,
        lazy=True,
        period_s=_RAY_S,
        switch_on={None: "log_engine_metrics=True in LLMConfig, and ray start --metrics-export-port 8080"},
    ),
    Server(
        "sglang",
        "SGLang",
        {
            Q.WAITING: (_gauge("sglang:num_queue_reqs"),),
            Q.RUNNING: (_gauge("sglang:num_running_reqs"),),
            Q.KV_USE: (_ratio("sglang:token_usage"),),
            Q.TTFT: (_histogram("sglang:time_to_first_token_seconds"),),
            Q.TPOT: (
                _histogram("sglang:inter_token_latency_seconds"),
                _histogram("sglang:time_per_output_token_seconds"),
            ),
            Q.E2E: (_histogram("sglang:e2e_request_latency_seconds"),),
            Q.QUEUE_TIME: (_histogram("sglang:queue_time_seconds"),),
            Q.COMPLETED: (_counter("sglang:num_requests_total"),),
            Q.FAILED: (_counter("sglang:num_aborted_requests_total"),),
            # Both totals below grow when a request ends, the realtime ones while it runs.
            Q.PROMPT_TOKENS: (
                _counter("sglang:realtime_tokens_total", where=("mode", ("prefill_",))),
                _counter("sglang:prompt_tokens_total"),
            ),
            Q.GENERATED_TOKENS: (
                _counter("sglang:realtime_tokens_total", where=("mode", ("decode",))),
                _counter("sglang:generation_tokens_total"),
            ),
            Q.REQUEST_INPUT: (_counter("sglang:prompt_tokens_total"),),
            Q.REQUEST_OUTPUT: (_counter("sglang:generation_tokens_total"),),
            Q.KV_TOKENS: (_gauge("sglang:max_total_num_tokens"),),
        },
        "python/sglang/srt/observability/metrics_collector.py and docs/references/production_metrics.md, read",
        port=30000,
        ranks=("tp_rank", "pp_rank", "moe_ep_rank"),
        lazy=True,
        switch_on={None: "start sglang.launch_server with --enable-metrics"},
    ),
    Server(
        "tgi",
        "TGI",
        {
            Q.WAITING: (_gauge("tgi_queue_size"),),
            Q.RUNNING: (_gauge("tgi_batch_current_size"),),
            # With the prompt in it: queue and prefill are spread over the tokens.
            Q.TPOT: (_histogram("tgi_request_mean_time_per_token_duration"),),
            Q.E2E: (_histogram("tgi_request_duration"),),
            Q.QUEUE_TIME: (_histogram("tgi_request_queue_duration"),),
            Q.ARRIVED: (_counter("tgi_request_count"),),
            Q.COMPLETED: (_counter("tgi_request_success"),),
            Q.FAILED: (_counter("tgi_request_failure"),),
            Q.PROMPT_TOKENS: (_counter("tgi_request_input_length_sum"),),
            Q.GENERATED_TOKENS: (_counter("tgi_request_generated_tokens_sum"),),
            Q.REQUEST_OUTPUT: (_counter("tgi_request_generated_tokens_sum"),),
            Q.STEPS: (_counter("tgi_batch_inference_count"),),
        },
        "router/src/server.rs and backends/v3 @db931fcf, docs/source/reference/metrics.md, read",
        port=80,
        lazy=True,
    ),
    Server(
        "trtllm",
        "trtllm-serve",
        {
            Q.WAITING: (_gauge("trtllm_num_requests_waiting"),),
            Q.RUNNING: (_gauge("trtllm_num_requests_running"),),
            Q.KV_USE: (_ratio("trtllm_kv_cache_utilization"),),
            Q.TTFT: (_histogram("trtllm_time_to_first_token_seconds"),),
            Q.TPOT: (_histogram("trtllm_time_per_output_token_seconds"),),
            Q.E2E: (_histogram("trtllm_e2e_request_latency_seconds"),),
            Q.QUEUE_TIME: (_histogram("trtllm_request_queue_time_seconds"),),
            Q.COMPLETED: (_counter("trtllm_request_success_total"),),
            Q.FAILED: (_counter("trtllm_request_error_total"),),
            Q.PROMPT_TOKENS: (_counter("trtllm_prompt_tokens_total"),),
            Q.GENERATED_TOKENS: (_counter("trtllm_generation_tokens_total"),),
            Q.SEQUENCES_MAX: (_gauge("trtllm_max_batch_size_runtime"), _gauge("trtllm_max_batch_size_static")),
        },
        "tensorrt_llm/metrics/collector.py and examples/serve/prometheus_metrics.py of 2026, read",
        path="/prometheus/metrics",
        port=8000,
        lazy=True,
        switch_on={
            None: "return_perf_metrics: true in the file of --extra_llm_api_options, and the path /prometheus/metrics",
            Q.WAITING: "enable_iter_perf_stats: true in the file of --extra_llm_api_options",
            Q.RUNNING: "enable_iter_perf_stats: true in the file of --extra_llm_api_options",
        },
    ),
    Server(
        "triton",
        "Triton",
        _TRITON,
        "live, 2.51; core src/metrics.cc @73aad7c and server docs/user_guide/metrics.md @e1db8a60, read",
        port=8002,
        switch_on=_TRITON_ON,
    ),
    Server(
        "triton-trtllm",
        "Triton + TRT-LLM",
        {
            **_TRITON,
            Q.WAITING: (_gauge("nv_trt_llm_request_metrics", where=("request_type", ("waiting",))),),
            Q.RUNNING: (_gauge("nv_trt_llm_request_metrics", where=("request_type", ("scheduled",))),),
            Q.KV_USE: (_ratio("nv_trt_llm_kv_cache_block_metrics", where=("kv_cache_block_type", ("fraction",))),),
            Q.SEQUENCES_MAX: (_gauge("nv_trt_llm_request_metrics", where=("request_type", ("max",))),),
        },
        "README.md of tensorrtllm_backend @0b9d7d5, read",
        port=8002,
        switch_on=_TRITON_ON,
    ),
    Server(
        "torchserve",
        "TorchServe",
        {
            Q.E2E: (_seconds("ts_inference_latency_microseconds", _US, Q.ARRIVED),),
            Q.QUEUE_TIME: (_seconds("ts_queue_latency_microseconds", _US, Q.ARRIVED),),
            # It grows before a worker has the request (InferenceRequestHandler); Requests2XX counts pings too.
            Q.ARRIVED: (_counter("ts_inference_requests_total"),),
            Q.FAILED: (_counter("Requests5XX"),),
        },
        "live, 0.12; docs/metrics.md and docs/metrics_api.md @62c4d6a1, read",
        port=8082,
        lazy=True,
        switch_on={None: "metrics_mode=prometheus in config.properties"},
    ),
    Server(
        "tf-serving",
        "TF Serving",
        {
            Q.E2E: (_histogram(":tensorflow:serving:request_latency", unit=_US),),
            Q.QUEUE_TIME: (_histogram(":tensorflow:serving:batching_session:queuing_latency", unit=_US),),
            Q.COMPLETED: (_counter(":tensorflow:serving:request_count", where=("status", ("OK",))),),
            Q.FAILED: (Series(":tensorflow:serving:request_count", Kind.COUNTER, without=("status", ("OK",))),),
        },
        "servables/tensorflow/util.cc, batching/batching_session.cc and util/prometheus_exporter.cc @9d981c5c, read",
        path="/monitoring/prometheus/metrics",
        port=8501,
        lazy=True,
        switch_on={
            None: "--monitoring_config_file with prometheus_config { enable: true }",
            Q.QUEUE_TIME: "--enable_batching=true",
        },
    ),
    Server(
        "ray-serve",
        "Ray Serve",
        {
            Q.WAITING: (_gauge("ray_serve_deployment_queued_queries"),),
            Q.RUNNING: (
                _gauge("ray_serve_replica_processing_queries"),
                _gauge("ray_serve_num_ongoing_requests_at_replicas"),
            ),
            # Without the time before a replica has it, which is the next.
            Q.E2E: (_histogram("ray_serve_deployment_processing_latency_ms", unit=_MS),),
            Q.QUEUE_TIME: (_histogram("ray_serve_request_router_fulfillment_time_ms", unit=_MS),),
            Q.COMPLETED: (
                _counter("ray_serve_deployment_request_counter_total"),
                _counter("ray_serve_deployment_request_counter"),
            ),
            Q.FAILED: (
                _counter("ray_serve_deployment_error_counter_total"),
                _counter("ray_serve_deployment_error_counter"),
            ),
        },
        "live, 2.60",
        port=8080,
        version=("ray_serve_deployment_queued_queries", "Version"),
        lazy=True,
        period_s=_RAY_S,
        switch_on={None: "ray start --metrics-export-port 8080, and scrape each node"},
    ),
    Server(
        "bentoml",
        "BentoML",
        {quantity: (_BENTO_NEW[quantity], _BENTO_OLD[quantity]) for quantity in _BENTO_NEW},
        "live, 1.4; src/bentoml/_internal/server/http/instruments.py @32230a52, read",
        port=3000,
        lazy=True,
        switch_on={None: "metrics: enabled: true in the configuration of the service"},
    ),
    Server(
        "dynamo",
        "Dynamo frontend",
        {
            Q.WAITING: (_gauge("dynamo_frontend_queued_requests"),),
            # Queued ones, which wait for their first token, are in flight too.
            Q.RUNNING: (Series("dynamo_frontend_inflight_requests", Kind.GAUGE, less=Q.WAITING),),
            Q.TTFT: (_histogram("dynamo_frontend_time_to_first_token_seconds"),),
            Q.TPOT: (_histogram("dynamo_frontend_inter_token_latency_seconds"),),
            Q.E2E: (_histogram("dynamo_frontend_request_duration_seconds"),),
            Q.ARRIVED: (_counter("dynamo_frontend_requests_started_total"),),
            Q.COMPLETED: (_counter("dynamo_frontend_requests_total", where=("status", ("success",))),),
            Q.FAILED: (_counter("dynamo_frontend_requests_total", where=("status", ("error",))),),
            Q.PROMPT_TOKENS: (_counter("dynamo_frontend_input_sequence_tokens_sum"),),
            Q.GENERATED_TOKENS: (
                _counter("dynamo_frontend_output_tokens_total"),
                _counter("dynamo_frontend_output_sequence_tokens_sum"),
            ),
            Q.REQUEST_INPUT: (_counter("dynamo_frontend_input_sequence_tokens_sum"),),
            Q.REQUEST_OUTPUT: (_counter("dynamo_frontend_output_sequence_tokens_sum"),),
        },
        "live, 1.6 with its mocker; prometheus_names.rs of 2026, read; its workers show their engine's own names",
        port=8000,
        lazy=True,
        front=True,
    ),
    Server(
        "llama.cpp",
        "llama.cpp server",
        {
            Q.WAITING: (_gauge("llamacpp:requests_deferred"),),
            Q.RUNNING: (_gauge("llamacpp:requests_processing"),),
            Q.KV_USE: (_ratio("llamacpp:kv_cache_usage_ratio"),),
            Q.TPOT: (_seconds("llamacpp:tokens_predicted_seconds_total", 1.0, Q.GENERATED_TOKENS),),
            Q.PROMPT_TOKENS: (_counter("llamacpp:prompt_tokens_total"),),
            Q.GENERATED_TOKENS: (_counter("llamacpp:tokens_predicted_total"),),
            Q.STEPS: (_counter("llamacpp:n_decode_total"),),
        },
        "tools/server/README.md, read as PR 16436 shows it; third parties: kv_cache_usage_ratio is not in newer builds",
        port=8080,
        switch_on={None: "start llama-server with --metrics"},
    ),
    Server(
        "kserve",
        "KServe model server",
        {
            Q.E2E: (_histogram("request_predict_seconds"),),
            # Of failed predictions too.
            Q.COMPLETED: (_counter("request_predict_seconds_count"),),
        },
        "live, 0.21; python/kserve/kserve/metrics.py @aaac4e29, read; with a runtime of another kind it shows that one's page",
        port=8080,
        lazy=True,
        switch_on={None: "annotation serving.kserve.io/enable-prometheus-scraping, or scrape the runtime itself"},
    ),
    Server(
        "litserve",
        "LitServe",
        {},
        "live, 0.2; src/litserve @1311d5b4, read: it has no page of metrics of its own",
        port=8000,
        switch_on={
            None: "LitServe tells nothing by itself: scrape a gateway before it, or count requests in a Logger of yours"
        },
    ),
    Server(
        "llm-d",
        "llm-d / Gateway API endpoint picker",
        {
            Q.WAITING: (
                _gauge("llm_d_epp_flow_control_queue_size"),
                _gauge("inference_extension_flow_control_queue_size"),
            ),
            Q.RUNNING: (_gauge("llm_d_epp_request_running"), _gauge("inference_objective_running_requests")),
            Q.KV_USE: (
                _ratio("llm_d_epp_average_kv_cache_utilization"),
                _ratio("inference_pool_average_kv_cache_utilization"),
            ),
            Q.TTFT: (_histogram("llm_d_epp_request_ttft_seconds"),),
            Q.TPOT: (_histogram("llm_d_epp_request_streaming_tpot_seconds"),),
            Q.E2E: (
                _histogram("llm_d_epp_request_duration_seconds"),
                _histogram("inference_objective_request_duration_seconds"),
            ),
            Q.QUEUE_TIME: (
                _histogram("llm_d_epp_flow_control_request_queue_duration_seconds"),
                _histogram("inference_extension_flow_control_request_queue_duration_seconds"),
            ),
            Q.ARRIVED: (_counter("llm_d_epp_request_total"), _counter("inference_objective_request_total")),
            Q.COMPLETED: (
                _counter("llm_d_epp_request_duration_seconds_count"),
                _counter("inference_objective_request_duration_seconds_count"),
            ),
            Q.FAILED: (_counter("llm_d_epp_request_error_total"), _counter("inference_objective_request_error_total")),
            Q.REQUEST_INPUT: (_counter("llm_d_epp_request_input_tokens_sum"),),
            Q.REQUEST_OUTPUT: (_counter("llm_d_epp_request_output_tokens_sum"),),
        },
        "pkg/epp/metrics/{llm_d_router_metrics,metrics}.go of llm-d-router @ebab6879, read; the older names are deprecated",
        port=9090,
        lazy=True,
        front=True,
        switch_on={Q.WAITING: "the feature gate flowControl of the endpoint picker"},
    ),
    Server(
        "switchgear-router",
        "switchgear router",
        {
            Q.WAITING: (_gauge("switchgear_router_held_requests"),),
            Q.E2E: (_histogram("switchgear_router_request_seconds"),),
            Q.COMPLETED: (_counter("switchgear_router_requests_total", where=("code", ("2",))),),
            Q.FAILED: (_counter("switchgear_router_requests_total", where=("code", ("4", "5"))),),
        },
        "live",
        port=7090,
        lazy=True,
        mark=("switchgear_build_info", "component", "router"),
        version=("switchgear_build_info", "version"),
        front=True,
    ),
)
BY_NAME: Mapping[str, Server] = {server.name: server for server in SERVERS}
