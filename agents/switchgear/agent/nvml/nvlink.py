"""NVLink by link: which are up, which have errors, and NVLink5's counters summed over the links."""

from __future__ import annotations

from collections.abc import Iterator
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
        # A call for each link: nobody says how many fields one call may have.
        self._batches = [
            FieldBatch(nvml, handle, [Field("", id_, 1.0, link) for id_ in (*ids, *(_DATA if link == 0 else ()))])
            for link in range(min(count, LINKS_MAX))
        ]
        self._links = range(min(count, LINKS_MAX))
        self._was_down = set[int]()
        self._had_errors = set[int]()

    def read(self) -> list[Value]:
        """Raises NVMLError for what concerns the whole GPU or driver."""
        sums = dict.fromkeys(_COUNTERS, 0.0)
        worst = dict.fromkeys(_RATES, 0.0)
        answered = set[int]()
        refused = dict[int, str]()
        up = dict[int, float]()
        first = 0.0
        errors: dict[int, float | str] = dict.fromkeys(self._links, 0.0)
        for field, value in self._read():
            if isinstance(value, str):
                # A sum without one of its links would look like a counter that was reset.
                refused[field.id] = value
                if field.id in _ERRORS:
                    errors[field.scope] = value
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
            if field.id in _ERRORS and not isinstance(so_far := errors[field.scope], str):
                errors[field.scope] = so_far + value
        values: list[Value] = [
            (metric, (), refused.get(id_, told[id_]))
            for names, told in ((_COUNTERS, sums), (_RATES, worst))
            for id_, metric in names.items()
            if id_ in answered or id_ in refused
        ]
        if answered.issuperset(_DATA) and refused.keys().isdisjoint(_DATA):
            values.append(("DCGM_FI_DEV_NVLINK_BANDWIDTH_L0", (), first))
        if NVLINK_STATE in refused:
            values.append(("switchgear_gpu_nvlinks_active", (), refused[NVLINK_STATE]))
        else:
            values += self._states(up)
        values += self._errors(errors)
        return values

    def _read(self) -> Iterator[tuple[Field, float | str]]:
        for batch in self._batches:
            try:
                values = batch.read()
            except self._nvml.Error as error:
                if code_of(error) in library.LOST | library.BROKEN:
                    raise
                values = [str(error)] * len(batch.fields)
            yield from zip(batch.fields, values, strict=True)

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

    def _errors(self, errors: dict[int, float | str]) -> list[Value]:
        self._had_errors.update(link for link, count in errors.items() if count and not isinstance(count, str))
        return [
            ("switchgear_gpu_nvlink_errors_total", (("nvlink", str(link)),), errors[link])
            for link in sorted(self._had_errors)
        ]
