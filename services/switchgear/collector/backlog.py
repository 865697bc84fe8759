"""Samples that an agent made while it could not send them: they come behind the live ones and go where they belong."""

from __future__ import annotations

import numpy as np

from switchgear.collector import messages
from switchgear.collector.blocks import Ids, Values, protocol
from switchgear.collector.chain import Chain, Outcome
from switchgear.collector.dictionary import dictionary_of
from switchgear.collector.taps import Taps
from switchgear.collector.windows import SERIES_MAX, NodeWindow, Times, Windows
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: In the year 2262; whatever an agent says fits.
_TIME_NS_MAX = 2**63 - 1


class Backlog:
    """What one stream brings of the time before it: a chain of deltas of its own, whose rows are put into the node's window."""

    def __init__(self, window: NodeWindow, windows: Windows, taps: Taps) -> None:
        self._window = window
        self._windows = windows
        self._taps = taps
        self._chain: Chain | None = None
        #: Of the windows' memory, for the chain.
        self._set_aside = 0

    def close(self) -> None:
        """The stream has ended, and with it the chain."""
        self._chain = None
        self._account()

    def take(self, message: pb.Backlog, offset_ns: int = 0) -> int:
        """Returns how many blocks it brought that had not come before. offset_ns: how far the node's clock is behind ours.

        Raises Invalid (STREAM_PROTOCOL) when the message contradicts itself or what came before it on this stream, ResourceExhausted when
        there is no memory for its series.
        """
        if len(message.blocks) > messages.BLOCKS_MAX:
            raise protocol(f"a backlog has at most {messages.BLOCKS_MAX} blocks")
        self._window.blocks_lost += message.lost
        if self._chain is None or self._chain.epoch != message.epoch:
            self._chain = Chain(message.epoch, gaps_lost=False)
        first_id, keys = dictionary_of(message.dictionary)
        if first_id + len(keys) > SERIES_MAX:
            raise protocol(f"a node has at most {SERIES_MAX} series")
        self._chain.define(first_id, keys)
        self._account()
        times, rows = [], []
        for block in message.blocks:
            outcome = self._chain.apply(messages.block_of(block))
            if outcome is not Outcome.APPLIED:
                raise protocol("a backlog's block does not follow the one before it, and is no keyframe")
            if block.sequence >= message.fresh_from:
                times.append(min(max(block.time_unix_ns + offset_ns, 0), _TIME_NS_MAX))
                rows.append(self._chain.latest())
        if rows:
            self._merge(self._chain, *np.unique(np.array(times, np.int64), return_index=True), np.array(rows))
        if message.last:
            self.close()
        return len(rows)

    def _account(self) -> None:
        needed = self._chain.nbytes if self._chain else 0
        self._windows.set_aside(needed - self._set_aside)
        self._set_aside = needed

    def _merge(self, chain: Chain, times: Times, of: Ids, rows: Values) -> None:
        """times: rising, also where the node's clock was set back meanwhile. of: the row of each."""
        rows = rows[of]
        self._window.merge(times, rows, self._window.schema.columns(chain.series))
        self._taps.late(self._window, chain.series, times, rows)
