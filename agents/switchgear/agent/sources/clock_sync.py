"""Whether the clock is kept in step, as the kernel sees it, under node_exporter's names.

A node with a wrong clock orders its logs wrongly and has its certificates refused.
"""

from __future__ import annotations

import ctypes
import os

from switchgear.agent.readings import Kind, Reading, known, series

_TIME_ERROR = 5
_STA_NANO = 0x2000
_MICROSECOND_S, _NANOSECOND_S = 1e-6, 1e-9
_long = ctypes.c_long


class _Timex(ctypes.Structure):
    """struct timex of linux/timex.h, adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", _long),
        ("freq", _long),
        ("maxerror", _long),
        ("esterror", _long),
        ("status", ctypes.c_int),
        ("constant", _long),
        ("precision", _long),
        ("tolerance", _long),
        ("time_s", _long),
        ("time_us", _long),
        ("tick", _long),
        ("ppsfreq", _long),
        ("jitter", _long),
        ("shift", ctypes.c_int),
        ("stabil", _long),
        ("jitcnt", _long),
        ("calcnt", _long),
        ("errcnt", _long),
        ("stbcnt", _long),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


class ClockSyncSource:
    """Offset and largest error of the clock, and whether anything keeps it in step."""

    name = "clock"
    period_s = 15.0

    def __init__(self) -> None:
        self._adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex

    def sample(self) -> list[Reading]:
        timex = _Timex()  # modes 0: only ask
        state = self._adjtimex(ctypes.byref(timex))
        if state < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        scale = _NANOSECOND_S if timex.status & _STA_NANO else _MICROSECOND_S
        return [
            known(series(f"node_timex_{name}", unit, Kind.GAUGE), value)
            for name, value, unit in (
                ("sync_status", int(state != _TIME_ERROR), ""),
                ("offset_seconds", timex.offset * scale, "seconds"),
                ("maxerror_seconds", timex.maxerror * _MICROSECOND_S, "seconds"),
                ("estimated_error_seconds", timex.esterror * _MICROSECOND_S, "seconds"),
                ("frequency_adjustment_ratio", 1 + timex.freq / 65536 / 1e6, "ratio"),
                ("tai_offset_seconds", timex.tai, "seconds"),
            )
        ]
