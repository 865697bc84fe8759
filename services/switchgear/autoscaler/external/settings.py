"""The configuration of `switchgear inference scale` (TOML): which services, where their replicas are, and what is promised."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from switchgear.autoscaler import observation
from switchgear.autoscaler.adapters.table import BY_NAME
from switchgear.core.errors import Invalid, Reason
from switchgear.core.urls import check_url

BYTES_MAX = 1024 * 1024
#: Each scrapes by itself and has a series of each metric.
SERVICES_MAX = 200
#: Of one service: a decision is held to 5 ms for 1,000 replicas.
REPLICAS_MAX = 10_000
_ERRORS_SHOWN = 5
_WAYS = ("endpoints", "endpoints_file", "dns", "prometheus")


def _selector(text: str) -> str:
    if not re.fullmatch(r"\{[^{}\n]*=[^{}\n]*\}", text):
        raise ValueError(f'{text[:200]!r} must be label matchers of PromQL in braces, for example {{app="chat"}}')
    return text


def _engine(name: str) -> str:
    if name and name not in BY_NAME:
        raise ValueError(f"{name[:100]!r} is no inference server that is known; there are {', '.join(sorted(BY_NAME))}")
    return name


Url = Annotated[str, AfterValidator(check_url)]
Label = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """A table of the file: what is no field of it is an error, so that a misspelt key is not silently without effect."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Slo(Section):
    """`[service.slo]`: see `observation.Slo`. A limit of 0: there is none; that is how the defaults of models with tokens are taken away."""

    objective: Annotated[float, Field(gt=0, lt=1)] = 0.99
    ttft_s: Annotated[float, Field(ge=0)] = 2.0
    ttft_prefill_factor: Annotated[float, Field(ge=0)] = 3.0
    tpot_s: Annotated[float, Field(ge=0)] = 0.1
    e2e_s: Annotated[float, Field(ge=0)] = 0.0
    wait_s: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _something_is_promised(self) -> Self:
        if not (self.ttft_s or self.e2e_s or self.wait_s):
            raise ValueError("nothing is promised: give one of ttft_s, e2e_s and wait_s above 0")
        return self

    def promise(self) -> observation.Slo:
        return observation.Slo(
            objective=self.objective,
            ttft_s=self.ttft_s or None,
            ttft_prefill_factor=self.ttft_prefill_factor,
            tpot_s=self.tpot_s or None,
            e2e_s=self.e2e_s or None,
            wait_s=self.wait_s or None,
        )


class Prometheus(Section):
    """`prometheus = {…}`: a server that scrapes the replicas already.

    url: of the server. selector: of the replicas' series, as PromQL has it: `{app="chat"}`. replica_label: tells them apart.
    """

    url: Url
    selector: Annotated[str, Field(max_length=1000), AfterValidator(_selector)]
    replica_label: Label = "instance"


class Service(Section):
    """One `[[service]]`.

    name: label of its metrics, and `service` in a ScaledObject's metadata. Its replicas are found in one of these ways. endpoints: URLs
    of their metrics, of which some may be off. endpoints_file: the same as a file of Prometheus' file_sd, read again when it changes.
    dns: one URL whose host has an address for each replica (a headless Kubernetes service). prometheus: see there.
    gateway: metrics of what holds requests in front of them; without one nobody sees a request while there is no replica.
    gateway_labels: of this service's series there, where a gateway stands before several.
    engine: name of the inference server as `switchgear inference probe` has it; empty: its page tells. With `prometheus` it must be given.
    policy: as `switchgear simulate autoscaling --policy`. interval_s: between looks; None: what the policy is made for; with
    `prometheus` no shorter than its scrape interval. timeout_s: of one page, and never more than the interval.
    cold_start_s: from the wish to the first answer, until it has been measured.
    bearer_token_file: for each page, read each time. ca_file: who is believed, PEM; None: whom the system believes.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    endpoints: Annotated[tuple[Url, ...], Field(max_length=REPLICAS_MAX)] = ()
    endpoints_file: Path | None = None
    dns: Url | None = None
    prometheus: Prometheus | None = None
    gateway: Url | None = None
    gateway_labels: Annotated[dict[Label, str], Field(max_length=8)] = {}
    engine: Annotated[str, AfterValidator(_engine)] = ""
    policy: str = "switchgear"
    interval_s: Annotated[float, Field(ge=0.1, le=300)] | None = None
    timeout_s: Annotated[float, Field(ge=0.05, le=60)] = 5.0
    min_replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=REPLICAS_MAX)]
    gpus_per_replica: Annotated[int, Field(ge=1, le=1024)] = 1
    gpu_budget: Annotated[int, Field(ge=0)] | None = None
    cold_start_s: Seconds | None = None
    slo: Slo = Slo()
    bearer_token_file: Path | None = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _as_a_whole(self) -> Self:
        given = [way for way in _WAYS if getattr(self, way)]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "nothing says where the replicas are"
            raise ValueError(f"{said}; give one of {', '.join(_WAYS)}")
        if self.prometheus is not None and not self.engine:
            raise ValueError(
                'prometheus needs engine, so that it is asked for that server\'s series alone: engine = "vllm"'
            )
        period_s = BY_NAME[self.engine].period_s if self.engine else 0.0
        if self.interval_s is not None and self.interval_s < period_s:
            raise ValueError(f"interval_s must be at least {period_s:g}: {self.engine} tells nothing new before")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.min_replicas == 0 and self.gateway is None:
            raise ValueError(
                "min_replicas = 0 needs a gateway that tells how many requests it holds: without a replica nobody else sees them. Give "
                "gateway, or keep one replica with min_replicas = 1"
            )
        if self.gpu_budget is not None and self.gpu_budget < self.min_replicas * self.gpus_per_replica:
            raise ValueError(
                f"gpu_budget {self.gpu_budget} is less than min_replicas x gpus_per_replica = {self.min_replicas * self.gpus_per_replica}"
            )
        return self


def _check_names(services: tuple[Service, ...]) -> tuple[Service, ...]:
    names = [service.name for service in services]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two are named {min(twice)!r}, and nobody could tell them apart")
    return services


class ScaleConfig(Section):
    """The whole file."""

    service: Annotated[tuple[Service, ...], Field(max_length=SERVICES_MAX), AfterValidator(_check_names)] = ()

    @model_validator(mode="after")
    def _there_is_one(self) -> Self:
        if not self.service:
            raise ValueError("no service is given; begin each with [[service]]")
        return self


def load(path: Path) -> ScaleConfig:
    """Raises Invalid, naming the file and each wrong key, when it cannot be read or is not as it should be."""
    what = f"the configuration {path}"
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        if len(data) > BYTES_MAX:
            raise Invalid(f"{what} has more than {BYTES_MAX} bytes", Reason.BAD_FIELD, file=str(path))
        return _checked(tomllib.loads(data.decode()), what)
    except OSError as error:
        raise Invalid(f"{what} cannot be read: {error.strerror}", Reason.BAD_FIELD, file=str(path)) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"{what} is no TOML: {error}", Reason.BAD_FIELD, file=str(path)) from error


def of_flags(service: Mapping[str, Any]) -> ScaleConfig:
    """The one service that the command line describes, by the keys of the file. Raises Invalid as `load` does."""
    return _checked({"service": [dict(service)]}, "the command line")


def _checked(given: Mapping[str, Any], what: str) -> ScaleConfig:
    try:
        return ScaleConfig.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        shown = [f"{_where(item, given)}: {_told(item)}" for item in found[:_ERRORS_SHOWN]]
        more = f" (and {len(found) - len(shown)} more)" if len(found) > len(shown) else ""
        raise Invalid(f"{what} has wrong settings: {'; '.join(shown)}{more}", Reason.BAD_FIELD) from error


def _where(error: ErrorDetails, given: Mapping[str, Any]) -> str:
    """The key, with the name of its service instead of its number."""
    keys = list(error["loc"])
    match keys:
        case ["service", int(number), *rest]:
            named = given["service"][number]
            name = named.get("name", number) if isinstance(named, Mapping) else number
            keys = [f"service {name!r}" if isinstance(name, str) else f"service {number}", *rest]
    return ".".join(map(str, keys)) or "file"


def _told(error: ErrorDetails) -> str:
    """What is wrong and what to write, in the words of TOML where pydantic speaks of Python."""
    match error["type"]:
        case "extra_forbidden":
            return "there is no such setting here; take it away or correct its name (docs/autoscaling.md has all)"
        case "missing":
            return "must be given"
        case "tuple_type" if len(error["loc"]) == 1:
            return "there may be several; begin each with [[service]]"
        case "tuple_type":
            return 'must be a list: ["…", "…"]'
        case "value_error":
            return str(error.get("ctx", {}).get("error", error["msg"]))
    return error["msg"]
