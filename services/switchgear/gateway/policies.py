"""`PolicyService`: the modes of policies, from the store."""

from __future__ import annotations

from typing import Any

import grpc.aio

from switchgear.core import identity, names
from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid, NotFound, Reason
from switchgear.core.modes import Mode
from switchgear.store.database import Database
from switchgear.store.policies import PolicyModes, Setting
from switchgear.store.requests import once
from switchgear.v1 import policy_service_pb2 as pb
from switchgear.v1 import policy_service_pb2_grpc as rpc

_Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(rpc.PolicyServiceServicer):
    """See `switchgear.v1.PolicyService`."""

    def __init__(self, database: Database, clock: Clock, modes: PolicyModes) -> None:
        self._database, self._clock, self._modes = database, clock, modes

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: _Context) -> pb.Policy:
        names.parse(request.name, "policies/*")
        for policy in await self._all():
            if policy.name == request.name:
                return policy
        raise NotFound(request.name)

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: _Context) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse(policies=await self._all())

    async def SetPolicyMode(self, request: pb.SetPolicyModeRequest, context: _Context) -> pb.Policy:
        (policy,) = names.parse(request.name, "policies/*")
        if request.mode not in pb.Policy.Mode.values():
            raise Invalid("mode must be OBSERVE, ADVISE or ACT", Reason.BAD_FIELD, field="mode")
        mode = Mode(pb.Policy.Mode.Name(request.mode)) if request.mode else None
        now_unix_ns = self._clock.unix_ns()
        async with self._database.write() as session:

            async def act() -> pb.Policy:
                setting = await self._modes.set(
                    session, policy, mode, actor=identity.actor("user:local"), now_unix_ns=now_unix_ns
                )
                return _to_proto(setting)

            return await once(session, request.request_id, request, pb.Policy, act, now_unix_ns=now_unix_ns)

    async def _all(self) -> list[pb.Policy]:
        async with self._database.read() as session:
            return [_to_proto(setting) for setting in await self._modes.settings(session)]


def _to_proto(setting: Setting) -> pb.Policy:
    policy = pb.Policy(
        name=f"policies/{setting.policy.name}",
        description=setting.policy.description,
        mode=setting.mode.value,
        default_mode=setting.policy.default.value,
        actor=setting.actor,
    )
    if setting.update_time_unix_ns:
        policy.update_time.FromNanoseconds(setting.update_time_unix_ns)
    return policy
