"""Writes Grafana's dashboards as JSON: `python dashboards/build.py`. The JSON is committed; a test holds it to this code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import fleet
import inference
import training
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def main() -> None:
    parser = argparse.ArgumentParser(description="Write Grafana's dashboards as JSON.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "grafana", help="folder (default: %(default)s)"
    )
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for made in (fleet.dashboard(), training.dashboard(), inference.dashboard()):
        (folder / f"{made.uid}.json").write_text(text_of(made))


def text_of(made: Dashboard) -> str:
    """The dashboard's JSON in a fixed order, so that a change of the code is the only change of the file."""
    return json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
