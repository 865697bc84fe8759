"""Health check of a container: exit code 0 when the gRPC server at HOST:PORT serves, asked as one service asks another."""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from switchgear.access.pki import Pki
from switchgear.cli.state import default_state_dir
from switchgear.core.rpc import sync_channel


def main(address: str, state_dir: Path) -> int:
    pki = Pki.find(state_dir / "pki")
    with sync_channel(address, pki.tls_files if pki else None) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.RpcError as error:
            sys.exit(str(error))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], default_state_dir()))
