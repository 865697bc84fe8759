"""The audit log as `switchgear audit` shows it."""

from __future__ import annotations

import pytest

from switchgear.cli.access import print_audit
from switchgear.v1 import access_service_pb2 as pb


def test_methods_of_the_same_name_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("switchgear.v1alpha.NodeAgentService/Connect", "switchgear.v1alpha.LauncherService/Connect")
    print_audit([pb.AuditEntry(method=method) for method in (*methods, "GET /v1/jobs/{name_0}", "")])
    header, *lines = capsys.readouterr().out.splitlines()
    begin, end = header.index("METHOD"), header.index("RESOURCE")
    assert [line[begin:end].strip() for line in lines] == [
        "NodeAgentService/Connect",
        "LauncherService/Connect",
        "GET /v1/jobs/{name_0}",
        "-",
    ]
