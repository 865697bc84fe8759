"""Many field values in one call, into memory that is kept from tick to tick."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from operator import truediv
from typing import Any

from switchgear.agent.nvml import library
from switchgear.agent.nvml.fields import Field
from switchgear.agent.nvml.library import Nvml

#: NVML says "there is none" by all bits set.
_BLANK = frozenset({2**32 - 1, 2**64 - 1})
_NOT_AVAILABLE = "not available"
# Behind id, scope, time and latency: type, return code, and the value as the type says (nvml.h, nvmlFieldValue_t, nvmlValueType_t).
_HEAD = "24x"
_VALUE_OF_TYPE = {0: "d", 1: "I4x", 2: "Q", 3: "Q", 4: "q", 5: "i4x", 6: "H6x"}
_ENTRY_BYTES = 40
_WIDE = frozenset({2, 3, 4})


class FieldBatch:
    """Fields of one GPU. What the driver does not have is left out from the second reading on."""

    def __init__(self, nvml: Nvml, handle: Any, fields: Sequence[Field]) -> None:
        self._nvml = nvml
        self._handle = handle
        self._proven = set[Field]()
        try:
            self._call = nvml.function("nvmlDeviceGetFieldValues")
        except nvml.Error:  # a driver of before 2016
            fields = ()
        self._ask(fields)

    @property
    def fields(self) -> Sequence[Field]:
        """What is asked for."""
        return self._fields

    def read(self) -> list[float | str]:
        """A value, or why there is none, of each of `fields` as it is after the call. Raises NVMLError when the whole call fails."""
        if not self._fields:
            return []
        code = self._call(self._handle, self._count, self._array)
        if code != library.SUCCESS:
            raise self._nvml.py.NVMLError(code)
        entries = self._layout.unpack_from(self._array)
        if entries[0::3] != self._types or any(entries[1::3]):
            return self._one_by_one()
        values = entries[2::3]
        if not _BLANK.isdisjoint(values):
            return [self._judge(value, per) for value, per in zip(values, self._pers, strict=True)]
        return list(map(truediv, values, self._pers))

    def _one_by_one(self) -> list[float | str]:
        """As `read`, for a call that some field did not answer, or answered with another type than before."""
        answers = list(zip(self._fields, self._array, strict=True))
        self._proven.update(field for field, entry in answers if entry.nvmlReturn == library.SUCCESS)
        answers = [(field, entry) for field, entry in answers if self._supports(field, entry)]
        values = [self._value(field, entry) for field, entry in answers]
        types = tuple(entry.valueType if entry.nvmlReturn == library.SUCCESS else 0 for _, entry in answers)
        if len(answers) < len(self._fields) or types != self._types:
            self._ask([field for field, _ in answers], types)
        return values

    def _supports(self, field: Field, entry: Any) -> bool:
        """A field that was answered once stays, whatever the driver says later."""
        if field.wide and entry.nvmlReturn == library.SUCCESS and entry.valueType not in _WIDE:
            return False
        return entry.nvmlReturn not in library.UNSUPPORTED or field in self._proven

    def _ask(self, fields: Sequence[Field], types: tuple[int, ...] = ()) -> None:
        """types: of the values, as the driver gave them; without, the first reading finds out."""
        self._fields = list(fields)
        self._types = types
        self._pers = [field.per for field in fields]
        self._array = (self._nvml.py.c_nvmlFieldValue_t * len(fields))()
        self._count = ctypes.c_int32(len(fields))
        for entry, field in zip(self._array, fields, strict=True):
            entry.fieldId, entry.scopeId = field.id, field.scope
        shapes = (_HEAD + "II" + _VALUE_OF_TYPE.get(type_, "Q") for type_ in types or [0] * len(fields))
        self._layout = struct.Struct("=" + "".join(shapes))
        if self._layout.size != ctypes.sizeof(self._array):
            raise TypeError(f"an nvmlFieldValue_t has {_ENTRY_BYTES} bytes in nvml.h, and not in this pynvml")

    def _value(self, field: Field, entry: Any) -> float | str:
        if entry.nvmlReturn != library.SUCCESS:
            return self._nvml.words(entry.nvmlReturn)
        shape = _VALUE_OF_TYPE.get(entry.valueType)
        if shape is None:
            return f"value type {entry.valueType} is unknown to this agent"
        return self._judge(struct.unpack("=" + shape, bytes(entry.value))[0], field.per)

    @staticmethod
    def _judge(value: float, per: float) -> float | str:
        return _NOT_AVAILABLE if value in _BLANK else value / per
