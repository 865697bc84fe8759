"""What the demo tells while it runs: a line for each event, and in a terminal the cluster as it is, drawn below."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

import grpc
from rich.console import Console
from rich.live import Live

from switchgear.cli.client import connect
from switchgear.cli.picture import Picture, take
from switchgear.cli.view import draw
from switchgear.core.errors import SwitchgearError

PICTURE_S = 0.7
#: How long the last drawing may take at the end.
JOIN_S = 5.0


class Telling:
    """Use it as a context; `say` prints a line.

    plain: lines only, as always where stdout is no terminal.
    """

    def __init__(self, *, plain: bool) -> None:
        console = Console(highlight=False, soft_wrap=True)
        self._console = console
        self._live = (
            None if plain or not console.is_terminal else Live(console=console, auto_refresh=False, transient=True)
        )
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Telling:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(JOIN_S)
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", markup=False)
        self._console.file.flush()

    def show(self, server: str, loss: Callable[[], float | None]) -> None:
        """From now on draws the control plane at `server`; `loss` is the training's newest. Nothing without a terminal."""
        if self._live:
            self._thread = threading.Thread(target=self._draw, args=(self._live, server, loss), daemon=True)
            self._thread.start()

    def _draw(self, live: Live, server: str, loss: Callable[[], float | None]) -> None:
        picture: Picture | None = None
        with connect(server) as client:
            while not self._ended.wait(PICTURE_S):
                try:
                    picture = take(client, picture)
                except (grpc.RpcError, SwitchgearError):
                    continue  # somebody was killed and comes back; the last picture stays
                jobs = tuple(replace(job, loss=loss()) for job in picture.jobs)
                live.update(draw(replace(picture, jobs=jobs)), refresh=True)
