"""`switchgear policies`, and how a process is configured which policies may act."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Mapping, Sequence

from switchgear.cli import exits
from switchgear.cli.client import connect
from switchgear.cli.output import last, print_json, print_table
from switchgear.cli.show import qualified
from switchgear.core.errors import Invalid, Reason
from switchgear.core.modes import Mode
from switchgear.v1 import policy_service_pb2 as pb

_MODES = tuple(mode.lower() for mode in Mode)
_ENVIRONMENT = "SWITCHGEAR_POLICY_"


def add_policy_argument(parser: argparse.ArgumentParser) -> None:
    """`--policy` of a process with services; the same for all processes of an installation."""
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME=MODE",
        help="mode of a policy: observe, advise or act, as in recovery.cordon=advise; repeatable "
        f"(or ${_ENVIRONMENT}RECOVERY_CORDON=advise); `switchgear policies` shows all and wins",
    )


def configured_policies(given: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, Mode]:
    """Modes from the environment, and from `NAME=MODE` of the command line, which wins.

    Raises Invalid when one of them is no mode, and in `PolicyModes` when there is no such policy.
    """
    pairs = [
        (name.removeprefix(_ENVIRONMENT).lower().replace("_", "."), mode)
        for name, mode in environment.items()
        if name.startswith(_ENVIRONMENT)
    ]
    for text in given:
        name, _, mode = text.partition("=")
        pairs.append((name, mode))
    for name, mode in pairs:
        if mode.lower() not in _MODES:
            raise Invalid(
                f"policy {name}={mode[:100]}: write NAME=MODE with one of {', '.join(_MODES)}, as in recovery.cordon=advise",
                Reason.BAD_FIELD,
                field="policy",
            )
    return {name: Mode(mode.upper()) for name, mode in pairs}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", nargs="?", help="show only this one, for example recovery.cordon")
    parser.add_argument(
        "--set",
        dest="mode",
        choices=(*_MODES, "default"),
        help="from now on, also after a restart; default: back to the configuration",
    )


def main(args: argparse.Namespace) -> int:
    """Lists policies, or shows or changes one."""
    if args.mode and not args.policy:
        raise Invalid("name the policy: switchgear policies NAME --set MODE", Reason.BAD_FIELD, field="policy")
    with connect(args.server) as client:
        if not args.policy:
            policies = list(client.policies.ListPolicies(pb.ListPoliciesRequest()).policies)
        elif args.mode:
            request = pb.SetPolicyModeRequest(
                name=qualified(args.policy, "policies"),
                mode="MODE_UNSPECIFIED" if args.mode == "default" else args.mode.upper(),
                request_id=uuid.uuid4().hex,
            )
            policies = [client.policies.SetPolicyMode(request)]
        else:
            policies = [client.policies.GetPolicy(pb.GetPolicyRequest(name=qualified(args.policy, "policies")))]
    if args.json:
        print_json(policies[0] if args.policy else policies)
        return exits.OK
    rows = [
        (last(policy.name), pb.Policy.Mode.Name(policy.mode).lower(), policy.actor or "default", policy.description)
        for policy in policies
    ]
    print_table(("POLICY", "MODE", "SET BY", "WHAT IT DOES"), rows, "no policies")
    return exits.OK
