"""Looks at the links of the machine that it runs on: one look, a second after the last, for each line that it reads.

It answers with the events that the look told, as one line of JSON. Argument: an empty folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from node_tree import Told

from switchgear.agent.sources.link_watch import LinkWatch
from switchgear.agent.sources.network import NetworkSource


def main() -> None:
    told = Told(Path(sys.argv[1]))
    source = NetworkSource(LinkWatch("network", told.events, told.clock), every_link=True)
    for _ in sys.stdin:
        source.sample()
        told.clock.advance(1)
        print(json.dumps([[event.kind, event.detail["link"]] for event in told.new()]), flush=True)  # noqa: T201 - its answer


main()
