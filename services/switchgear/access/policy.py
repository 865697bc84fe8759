"""Who may call what: one line for every method of the contract. A method that is not here is refused to everybody."""

from __future__ import annotations

from enum import Enum

from switchgear.core.identity import Identity, Kind, Role


class Needs(Enum):
    """What a method asks of its caller."""

    #: Anybody: the proof is in the request itself, or there is nothing to protect.
    NOTHING = 0
    VIEWER = Role.VIEWER.value
    OPERATOR = Role.OPERATOR.value
    ADMIN = Role.ADMIN.value
    #: A node's certificate; the servicer checks that the node speaks for itself alone (`core.identity.require_node`).
    NODE = 10
    #: The same, or an operator's token: whoever may cordon a node may also tell of it.
    TELEMETRY = 13
    #: The control plane's certificate.
    SERVICE = 11
    #: A router's certificate, or the control plane's: `switchgear up` has a router in its process.
    ROUTER = 12


#: Names in the certificates of services.
CONTROL_PLANE = "control-plane"
ROUTER = "router"
#: Reads `/metrics` of every process, and may call nothing.
METRICS = "metrics"

_BY_NEED: dict[Needs, dict[str, str]] = {
    Needs.NOTHING: {
        "grpc.health.v1.Health": "Check List Watch",
        "switchgear.v1.AccessService": "EnrollNode",
    },
    Needs.VIEWER: {
        "grpc.reflection.v1.ServerReflection": "ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection": "ServerReflectionInfo",
        "switchgear.v1.FleetService": "GetNode ListNodes WatchNodes",
        "switchgear.v1.JobService": "GetJob ListJobs WatchJobs",
        "switchgear.v1.RecoveryService": "GetIncident ListIncidents WatchIncidents ListAttempts ListCheckpoints GetJobProgress "
        "GetJobGoodput GetReliability",
        "switchgear.v1.SignalService": "ListSignals WatchSignals",
        "switchgear.v1.AutoscalerService": "GetInferenceService ListInferenceServices WatchInferenceServices ListReplicas "
        "WatchDecisions",
        "switchgear.v1.PolicyService": "GetPolicy ListPolicies",
        "switchgear.v1alpha.TelemetryService": "GetNodeTelemetry Query",
        "switchgear.v1alpha.HealthService": "GetNodeHealth ListNodeHealth WatchNodeHealth",
        "switchgear.v1alpha.PlannerService": "ExplainJob WhatIf GetPlannerSnapshot GetQueue ListQueues GetReservation ListReservations",
    },
    Needs.OPERATOR: {
        "switchgear.v1.FleetService": "CordonNode UncordonNode LabelNode",
        "switchgear.v1.JobService": "CreateJob CancelJob CreateJobArray HoldJob ReleaseJob RequeueJob",
        "switchgear.v1alpha.HealthService": "ClearNodeHealth",
        "switchgear.v1alpha.PlannerService": "CreateReservation UpdateReservation DeleteReservation",
        "switchgear.v1.AutoscalerService": "CreateInferenceService ScaleInferenceService UpdateInferenceService "
        "DeleteInferenceService SetShadowPolicy",
    },
    Needs.ADMIN: {
        "switchgear.v1.AccessService": "CreateToken ListTokens RevokeToken CreateJoinToken ListAuditEntries",
        "switchgear.v1.PolicyService": "SetPolicyMode",
        "switchgear.v1alpha.PlannerService": "CreateQueue UpdateQueue DeleteQueue",
    },
    Needs.NODE: {
        "switchgear.v1alpha.TelemetryService": "Stream",
        "switchgear.v1alpha.NodeAgentService": "Connect",
        "switchgear.v1alpha.LauncherService": "Connect",
        "switchgear.v1alpha.RendezvousService": "Join",
        "switchgear.v1alpha.ServingService": "ConnectReplica",
    },
    Needs.TELEMETRY: {
        "opentelemetry.proto.collector.metrics.v1.MetricsService": "Export",
    },
    Needs.SERVICE: {
        "switchgear.v1alpha.PlacementService": "ReplaceNodes UpdateJobState GetNodeContact ReportCheckpoint ReportAttempt",
    },
    Needs.ROUTER: {
        "switchgear.v1alpha.ServingService": "ConnectRouter",
    },
}
_NEEDS = {
    f"{service}/{method}": need
    for need, services in _BY_NEED.items()
    for service, methods in services.items()
    for method in methods.split()
}
#: What changes nothing, and what is a conversation of machines instead of one change: not in the audit log unless refused.
_READS = ("Get", "List", "Watch", "Query", "Check", "Explain", "WhatIf", "ServerReflectionInfo")
_STREAMS = frozenset(name for name, need in _NEEDS.items() if need in (Needs.NODE, Needs.TELEMETRY, Needs.ROUTER))


def needs(method: str) -> Needs | None:
    """What `package.Service/Method` asks of its caller; None: nobody may call it."""
    return _NEEDS.get(method)


def mutates(method: str) -> bool:
    """Whether a call of the method belongs into the audit log also when it was allowed."""
    return method not in _STREAMS and not method.rpartition("/")[2].startswith(_READS)


def may(caller: Identity, method: str) -> bool:
    """Whether the caller may call the method. Which node it may speak for is the servicer's to check."""
    need = _NEEDS.get(method)
    if need is None:
        return False
    if need is Needs.NOTHING or caller.kind is Kind.LOCAL:
        return True
    match caller.kind:
        case Kind.USER:
            if need is Needs.TELEMETRY:
                return caller.role >= Role.OPERATOR
            return need in (Needs.VIEWER, Needs.OPERATOR, Needs.ADMIN) and caller.role >= need.value
        case Kind.NODE:
            return need in (Needs.NODE, Needs.TELEMETRY)
        case Kind.SERVICE:
            if caller.name == CONTROL_PLANE:
                # Its services read and act for one another; tokens and policies are for people to change.
                return need in (Needs.VIEWER, Needs.OPERATOR, Needs.SERVICE, Needs.ROUTER)
            return caller.name == ROUTER and need is Needs.ROUTER
    return False


def denial(caller: Identity, method: str) -> str:
    """Why `may` said no, with the remedy."""
    need = _NEEDS.get(method)
    if need is None:
        return f"nobody may call {method[:100]}: this server has no rule for it"
    if caller.kind is Kind.USER and need in (Needs.VIEWER, Needs.OPERATOR, Needs.ADMIN):
        have, want = caller.role.name.lower(), need.name.lower()
        return f"{caller.actor} is {have} and {method} needs {want}; ask an admin for a token with that role"
    holder = _HOLDERS.get(need, "a person's token")
    return f"{method} needs {holder}, not that of {caller.actor or 'nobody'}"


_HOLDERS = {
    Needs.NODE: "a node's certificate",
    Needs.TELEMETRY: "a node's certificate or an operator's token",
    Needs.SERVICE: "the control plane's certificate",
    Needs.ROUTER: "a router's certificate",
}
