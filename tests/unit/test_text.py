"""Text of others on a terminal."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from switchgear.cli.output import print_line, print_table, tell
from switchgear.cli.picture import IncidentLine, NodeLine, Picture
from switchgear.cli.view import draw
from switchgear.core import log
from switchgear.core.text import printable

#: Clears the screen, ends the line, hides what follows, returns to its begin, turns the direction of writing.
HOSTILE = "H100\x1b[2J\nnodes/b  HEALTHY\x9b8m\r\u202ereven\u2028ton \0"


def test_text_without_control_characters_stays_as_it_is() -> None:
    for text in ("", "NVIDIA H100 80GB HBM3", "Zürich, 東京 ✓ 🙂"):
        assert printable(text) == text


def test_every_other_character_is_replaced_by_one_that_does_nothing() -> None:
    assert printable(HOSTILE).isprintable()
    assert len(printable(HOSTILE)) == len(HOSTILE)
    assert printable("a\ud800\tb") == "a\ufffd\ufffdb"


def test_a_row_of_a_table_stays_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NODE", "MODEL"), [("a", HOSTILE), (HOSTILE, "b")], "no nodes")
    lines = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_a_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(HOSTILE)
    tell(HOSTILE)
    shown = capsys.readouterr()
    for text in shown.out, shown.err:
        assert text.removesuffix("\n").isprintable()


def test_top_draws_the_text_of_others_as_text() -> None:
    picture = Picture(
        0.0,
        nodes=(NodeLine("a", "HEALTHY", 1, 0, f"[red]{HOSTILE}"),),
        incidents=(IncidentLine("i", "j", "OPEN", HOSTILE, HOSTILE, HOSTILE),),
    )
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    with console.capture() as shown:
        console.print(draw(picture))
    assert "[red]H100" in shown.get()
    assert all(line.isprintable() for line in shown.get().split("\n"))


def test_a_log_line_on_a_terminal_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log.configure("info", stream)
        logging.getLogger("test").warning("the node says %s", HOSTILE)
    finally:
        root.handlers[:], root.level = before
    assert "the node says H100" in stream.getvalue()
    assert stream.getvalue().removesuffix("\n").isprintable()
