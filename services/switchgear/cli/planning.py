"""What the planner of a running control plane sees now, for commands that think about it here."""

from __future__ import annotations

import zlib

from switchgear.cli.client import Client
from switchgear.planner.model import Snapshot
from switchgear.planner.records import snapshot_from_json
from switchgear.v1alpha import planner_service_pb2 as pb


def live_snapshot(client: Client) -> tuple[Snapshot, float]:
    """The snapshot, and the time for which it is planned, in Unix seconds."""
    answer = client.planner.GetPlannerSnapshot(pb.GetPlannerSnapshotRequest())
    return snapshot_from_json(zlib.decompress(answer.json_zlib))
