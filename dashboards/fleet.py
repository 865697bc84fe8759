"""Fleet: which nodes and GPUs there are, how they are, and whether the control plane itself is well."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import GREEN, RED, YELLOW, AnyPanel, Query, board, label_variable, number, quantiles, rows, timeline

_NODE = 'node=~"$node"'
#: More lines than these say nothing on one panel; a fleet has thousands of GPUs.
_WORST = 10


def dashboard() -> Dashboard:
    """The dashboard `switchgear-fleet`."""
    return board(
        "switchgear-fleet",
        "Switchgear / Fleet",
        "Nodes, GPUs and hosts as their agents see them, and the health of the control plane.",
        [label_variable("node", "switchgear_node_up", "Nodes to show in the rows below the overview.")],
        [
            ("Overview", _overview()),
            ("Nodes", _nodes()),
            ("GPUs", _gpus()),
            ("Hosts", _hosts()),
            ("Telemetry", _telemetry()),
            ("Control plane", _control_plane()),
        ],
    )


def _overview() -> list[AnyPanel]:
    return [
        number(
            "Nodes reachable",
            "Share of the known nodes whose agent the scheduler hears. 100 % is normal.",
            Query("avg(switchgear_node_up)"),
            unit="percentunit",
            steps=[(0, RED), (0.9, YELLOW), (1, GREEN)],
        ),
        number(
            "Nodes not healthy",
            "Nodes in any state but HEALTHY: taken out by a person or a policy, or unreachable.",
            Query('sum(switchgear_node_state{state!="HEALTHY"}) or vector(0)'),
            unit="short",
            steps=[(0, GREEN), (1, YELLOW)],
        ),
        number(
            "GPUs",
            "GPUs of all known nodes, simulated ones included.",
            Query("sum(switchgear_node_gpus)"),
            unit="short",
        ),
        number(
            "GPUs allocated",
            "Share of all GPUs that a job holds, whether it uses them or not.",
            Query("sum(switchgear_node_gpus_allocated) / sum(switchgear_node_gpus)"),
            unit="percentunit",
        ),
        number(
            "Incidents open",
            "Faults of jobs that are being dealt with now.",
            Query("sum(switchgear_incidents_open)"),
            unit="short",
            steps=[(0, GREEN), (1, YELLOW)],
        ),
        number(
            "Alerts firing",
            "Alerts that Prometheus raises now, of all rules that it has.",
            Query('count(ALERTS{alertstate="firing"}) or vector(0)'),
            unit="short",
            steps=[(0, GREEN), (1, RED)],
        ),
    ]


def _nodes() -> list[AnyPanel]:
    return [
        rows(
            "Nodes",
            "Each node: 1 in `reachable` while its agent is heard, its GPUs, and how many of them jobs hold.",
            Query(f"sum by (node) (switchgear_node_up{{{_NODE}}})", "reachable"),
            Query(f"sum by (node) (switchgear_node_gpus{{{_NODE}}})", "GPUs"),
            Query(f"sum by (node) (switchgear_node_gpus_allocated{{{_NODE}}})", "allocated"),
            key="node",
        ),
        timeline(
            "Nodes by state",
            "How many nodes are in each state of their life cycle.",
            Query(f"sum by (state) (switchgear_node_state{{{_NODE}}})", "{{state}}"),
            unit="short",
            width=12,
            stacked=True,
        ),
    ]


def _gpus() -> list[AnyPanel]:
    return [
        timeline(
            "GPU utilisation by node",
            "Share of the time in which a kernel ran, mean of a node's GPUs; the ten least used of the chosen nodes. It does not say how"
            " full the GPU was.",
            Query(f"bottomk({_WORST}, avg by (node) (DCGM_FI_DEV_GPU_UTIL{{{_NODE}}}))", "{{node}}"),
            unit="percent",
            max_value=100,
        ),
        timeline(
            "Tensor cores active",
            "Share of cycles in which the tensor pipe worked, mean of a node's GPUs; the ten least used. Nearer to useful work than"
            " utilisation.",
            Query(f"bottomk({_WORST}, avg by (node) (DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{_NODE}}}))", "{{node}}"),
            unit="percentunit",
            max_value=1,
        ),
        timeline(
            "Memory used",
            "Share of a GPU's memory in use; the ten fullest GPUs.",
            Query(
                f"topk({_WORST}, DCGM_FI_DEV_FB_USED{{{_NODE}}}"
                f" / (DCGM_FI_DEV_FB_USED{{{_NODE}}} + DCGM_FI_DEV_FB_FREE{{{_NODE}}}))",
                "{{node}} GPU {{gpu}}",
            ),
            unit="percentunit",
            max_value=1,
        ),
        timeline(
            "Temperature",
            "Of the ten hottest GPUs. Most slow themselves down between 85 and 95 °C.",
            Query(f"topk({_WORST}, DCGM_FI_DEV_GPU_TEMP{{{_NODE}}})", "{{node}} GPU {{gpu}}"),
            unit="celsius",
            steps=[(0, GREEN), (80, YELLOW), (90, RED)],
        ),
        timeline(
            "Power",
            "Drawn by all GPUs of the chosen nodes together.",
            Query(f"sum(DCGM_FI_DEV_POWER_USAGE{{{_NODE}}})", "GPUs"),
            unit="watt",
        ),
        timeline(
            "Uncorrectable memory errors",
            "Double-bit ECC errors since the driver was loaded, of the ten worst GPUs. Any is a reason to look at the GPU.",
            Query(f"topk({_WORST}, DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{{_NODE}}})", "{{node}} GPU {{gpu}}"),
            unit="short",
            steps=[(0, GREEN), (1, RED)],
        ),
    ]


def _hosts() -> list[AnyPanel]:
    return [
        timeline(
            "CPU busy",
            "Share of the node's CPU time that was not idle; the ten busiest nodes. Data loading that is starved shows here.",
            Query(
                f'topk({_WORST}, 1 - sum by (node) (rate(node_cpu_seconds_total{{mode=~"idle|iowait", {_NODE}}}[$__rate_interval]))'
                f" / sum by (node) (rate(node_cpu_seconds_total{{{_NODE}}}[$__rate_interval])))",
                "{{node}}",
            ),
            unit="percentunit",
            max_value=1,
        ),
        timeline(
            "Memory available",
            "Memory that a process can still get without swapping; the ten nodes with the least.",
            Query(f"bottomk({_WORST}, node_memory_MemAvailable_bytes{{{_NODE}}})", "{{node}}"),
            unit="bytes",
        ),
        timeline(
            "Network",
            "Received and sent by all interfaces of the chosen nodes but loopback.",
            Query(
                f'sum(rate(node_network_receive_bytes_total{{device!="lo", {_NODE}}}[$__rate_interval]))', "received"
            ),
            Query(f'sum(rate(node_network_transmit_bytes_total{{device!="lo", {_NODE}}}[$__rate_interval]))', "sent"),
            unit="Bps",
        ),
    ]


def _telemetry() -> list[AnyPanel]:
    return [
        timeline(
            "Signals",
            "Findings of the detectors in each hour, by kind and severity: what recovery acts upon.",
            Query("sum by (kind, severity) (increase(switchgear_signals_total[1h]))", "{{kind}} {{severity}}"),
            unit="short",
            width=12,
        ),
        timeline(
            "Agents without telemetry",
            "Nodes that the scheduler reaches and whose telemetry the collector does not get. 0 is normal.",
            Query("sum(switchgear_node_up) - sum(switchgear_agent_connected)", "nodes"),
            unit="short",
            width=6,
        ),
        timeline(
            "Telemetry lost",
            "Blocks of samples that agents made and the collector never got, a second. Samples only; events are kept on disk and sent again.",
            Query("sum(rate(switchgear_collector_blocks_lost_total[$__rate_interval]))", "blocks"),
            unit="cps",
            width=6,
        ),
    ]


def _control_plane() -> list[AnyPanel]:
    return [
        timeline(
            "Requests",
            "gRPC calls that ended, by service. Calls among the services count as well.",
            Query("sum by (grpc_service) (rate(grpc_server_handled_total[$__rate_interval]))", "{{grpc_service}}"),
            unit="reqps",
        ),
        timeline(
            "Errors of the server",
            "Calls that ended because of the server (INTERNAL, UNKNOWN, UNAVAILABLE, DATA_LOSS, DEADLINE_EXCEEDED), by method. 0 is normal.",
            Query(
                "sum by (grpc_service, grpc_method) (rate(grpc_server_handled_total"
                '{grpc_code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED"}[$__rate_interval]))',
                "{{grpc_service}}/{{grpc_method}}",
            ),
            unit="reqps",
        ),
        timeline(
            "Latency of calls",
            "Time that unary calls took in their server, by service.",
            *quantiles("grpc_server_handling_seconds", "", "grpc_service"),
            unit="s",
        ),
        timeline(
            "REST requests",
            "Requests at the gateway by HTTP status.",
            Query("sum by (code) (rate(switchgear_gateway_requests_total[$__rate_interval]))", "{{code}}"),
            unit="reqps",
        ),
        rows(
            "Policies",
            "The mode in which each policy runs: observe only counts, advise tells, act does.",
            Query("max by (policy, mode) (switchgear_policy_mode) == 1", "current"),
            key="policy",
            width=8,
        ),
        timeline(
            "Access refused",
            "Calls without a valid token or certificate, or without the role that they need, by reason.",
            Query("sum by (reason) (rate(switchgear_access_refused_total[$__rate_interval]))", "{{reason}}"),
            unit="reqps",
        ),
        rows(
            "Versions",
            "What runs: each component with its version.",
            Query("count by (component, version) (switchgear_build_info)", "processes"),
            key="component",
            width=8,
        ),
    ]
