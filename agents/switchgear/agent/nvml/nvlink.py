"""NVLink by link: which are up, which have errors, and NVLink5's counters summed over the links."""

from __future__ import annotations

from typing import Any

from switchgear.agent.nvml import library
from switchgear.agent.nvml.batch import FieldBatch
from switchgear.agent.nvml.fields import (
    NVLINK5,
    NVLINK5_BER,
    NVLINK5_ERRORS,
    NVLINK_ERRORS_DL,
    NVLINK_STATE,
    Field,
    bit_error_rate,
)
from switchgear.agent.nvml.library import Nvml, code_of
from switchgear.agent.sources.gpu import Value

#: As many as NVML can name (nvml.h, NVML_NVLINK_MAX_LINKS); the newest GPUs have 18.
LINKS_MAX = 36
_COUNTERS = {field.id: field.metric for field in NVLINK5}
_RATES = {field.id: field.metric for field in NVLINK5_BER}
#: Data sent and received over one link, in KiB.
_DATA = (138, 139)
_ERRORS = NVLINK5_ERRORS | set(NVLINK_ERRORS_DL)


class NvLinks:
    """The links of one GPU."""

    def __init__(self, nvml: Nvml, handle: Any, count: int) -> None:
        self._nvml = nvml
        self._handle = handle
        ids = (NVLINK_STATE, *NVLINK_ERRORS_DL, *_COUNTERS, *_RATES)
        fields = [Field("", id_, 1.0, link) for link in range(min(count, LINKS_MAX)) for id_ in ids]
        self._batch = FieldBatch(nvml, handle, [*fields, *(Field("", id_) for id_ in _DATA)])
        self._links = range(min(count, LINKS_MAX))
        self._was_down = set[int]()
        self._had_errors = set[int]()

    def read(self) -> list[Value]:
        """Raises NVMLError when nothing can be read."""
        readings = self._batch.read()
        sums = dict.fromkeys(_COUNTERS, 0.0)
        worst = dict.fromkeys(_RATES, 0.0)
        answered = set[int]()
        refused = dict[int, str]()
        up = dict[int, float]()
        first = 0.0
        errors = dict.fromkeys(self._links, 0.0)
        for field, value in zip(self._batch.fields, readings, strict=True):
            if isinstance(value, str):
                refused[field.id] = value
                continue
            answered.add(field.id)
            if field.id in _DATA:
                first += value
            elif field.id == NVLINK_STATE:
                up[field.scope] = value
            elif field.id in worst:
                worst[field.id] = max(worst[field.id], bit_error_rate(value))
            elif field.id in sums:
                sums[field.id] += value
            if field.id in _ERRORS:
                errors[field.scope] += value
        values: list[Value] = [(_COUNTERS[id_], (), sums[id_]) for id_ in _COUNTERS if id_ in answered]
        values += [(_RATES[id_], (), worst[id_]) for id_ in _RATES if id_ in answered]
        values += [
            ({**_COUNTERS, **_RATES}[id_], (), reason)
            for id_, reason in refused.items()
            if id_ not in answered and (id_ in _COUNTERS or id_ in _RATES)
        ]
        if answered.issuperset(_DATA):
            values.append(("DCGM_FI_DEV_NVLINK_BANDWIDTH_L0", (), first))
        values += self._states(up)
        values += self._errors(errors)
        return values

    def _states(self, up: dict[int, float]) -> list[Value]:
        # Older drivers have no field for it.
        up = up or {link: state for link in self._links if (state := self._state(link)) is not None}
        if not up:
            return []
        self._was_down.update(link for link, state in up.items() if not state)
        each: list[Value] = [
            ("switchgear_gpu_nvlink_up", (("nvlink", str(link)),), up[link])
            for link in sorted(self._was_down & up.keys())
        ]
        return [("switchgear_gpu_nvlinks_active", (), float(sum(state > 0 for state in up.values()))), *each]

    def _state(self, link: int) -> float | None:
        try:
            return float(self._nvml.py.nvmlDeviceGetNvLinkState(self._handle, link))
        except self._nvml.Error as error:
            if code_of(error) in library.LOST | library.BROKEN:
                raise
            return None

    def _errors(self, errors: dict[int, float]) -> list[Value]:
        self._had_errors.update(link for link, count in errors.items() if count)
        return [
            ("switchgear_gpu_nvlink_errors_total", (("nvlink", str(link)),), errors[link])
            for link in sorted(self._had_errors)
        ]
