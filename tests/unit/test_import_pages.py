"""Pages of exporters, files of targets and settings, good and bad."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from switchgear.collector import config
from switchgear.collector.imports.exposition import Reader
from switchgear.collector.imports.keys import node_of
from switchgear.collector.imports.presence import Presence
from switchgear.collector.imports.settings import Scrape
from switchgear.collector.imports.targets import Target, Targets, targets_of
from switchgear.collector.series import Kind
from switchgear.core.errors import Invalid


def samples(text: str, reader: Reader | None = None) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    page = (reader or Reader()).read(text)
    return {(key.metric, frozenset(key.labels)): value for key, value in zip(page.keys, page.values, strict=True)}


def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    gauge = Gauge("g", 'with "quotes", \\ and {braces}', ["a", "b"], registry=registry)
    gauge.labels('x"} 1 # {', "\\n\n").set(-1.5)
    gauge.labels("ü", "2").set(math.inf)
    Counter("c", "counts", registry=registry).inc(7)
    Histogram("h", "seconds", registry=registry).observe(0.2)
    return registry


def test_a_page_is_read_as_the_library_reads_it_at_first_and_again() -> None:
    text = generate_latest(registry()).decode()
    expected = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    reader = Reader()
    assert samples(text, reader) == expected
    assert samples(text.replace("-1.5", "2.5"), reader)["g", frozenset({("a", 'x"} 1 # {'), ("b", "\\n\n")})] == 2.5


def test_openmetrics_is_read_too_and_counters_are_counters() -> None:
    page = Reader().read(generate_openmetrics(registry()).decode())
    kinds = {key.metric: key.kind for key in page.keys}
    assert (kinds["c_total"], kinds["g"]) == (Kind.COUNTER, Kind.GAUGE)


def test_dcgm_counters_keep_their_names() -> None:
    page = Reader().read("# TYPE DCGM_FI_DEV_PCIE_REPLAY_COUNTER counter\nDCGM_FI_DEV_PCIE_REPLAY_COUNTER 3\n")
    assert [(key.metric, key.kind) for key in page.keys] == [("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", Kind.COUNTER)]


@pytest.mark.parametrize("line", ["a 1 1700000000000", "a{} 1", "a  1.0\t17", 'a 1 # {trace="1"} 3 4', "a 1\r"])
def test_times_exemplars_and_blanks_are_read_over(line: str) -> None:
    assert samples(f"{line}\n") == {("a", frozenset()): 1.0}


def test_a_line_that_cannot_be_read_costs_itself_alone_and_a_page_without_any_other_is_none() -> None:
    page = Reader().read('a 1\nb{x="1} 2\nc two\n1x 3\n')
    assert (page.values, page.rejected["malformed"]) == ([1.0], 3)
    for text in ("<html>\n<body>Not found</body>\n", "\x00\x01"):
        with pytest.raises(ValueError, match="no line"):
            Reader().read(text)
    assert Reader().read("").keys == []


def test_labels_are_bounded_and_series_are_chosen() -> None:
    wide = ",".join(f'l{number}="x"' for number in range(33))
    page = Reader().read(f'a{{{wide}}} 1\nb{{l="{"x" * 257}"}} 1\nc 1\n')
    assert ([key.metric for key in page.keys], page.rejected["labels"]) == (["c"], 2)
    scrape = Scrape(name="n", url="http://h/metrics", metrics=("node_(edac|network)_.*", "up"))  # type: ignore[arg-type]
    chosen = Reader(scrape.metrics).read("node_edac_x 1\nxnode_edac_x 1\nup 1\nnode_cpu 1\n")
    assert [key.metric for key in chosen.keys] == ["node_edac_x", "up"]


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("GPU-01.Cluster", "nodes/gpu-01.cluster"),
        ("10.0.0.5:9400", "nodes/10.0.0.5"),
        ("[fd00::1]:9400", "nodes/fd00-1"),
        ("fd00::1", "nodes/fd00-1"),
        ("-:-", ""),
    ],
)
def test_a_host_is_the_node_that_its_agent_would_be(text: str, node: str) -> None:
    assert node_of(text) == node


def test_a_file_of_targets_is_read_again_when_it_changes_and_kept_when_it_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    targets = Targets(Scrape(name="dcgm", targets_file=file))
    assert targets.look() == frozenset()
    group = {"targets": ["gpu-01:9400", "gpu-02:9400"], "labels": {"__scheme__": "https", "__metrics_path__": "/m"}}
    file.write_text(json.dumps([group, {"targets": ["10.0.0.3:9400"], "labels": {"node": "gpu-03"}}]))
    found = {
        Target("https://gpu-01:9400/m", "nodes/gpu-01"),
        Target("https://gpu-02:9400/m", "nodes/gpu-02"),
        Target("http://10.0.0.3:9400/metrics", "nodes/gpu-03"),
    }
    assert targets.look() == found
    file.write_text("[{")
    assert targets.look() == found
    file.unlink()
    assert targets.look() == found
    file.write_text("[]")
    os.utime(file, ns=(1, 1))
    assert targets.look() == frozenset()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "list"),
        ("[{}]", "targets"),
        ('[{"targets": ["ftp://x"]}]', "must read http"),
        ('[{"targets": ["///"]}]', "http"),
    ],
)
def test_a_wrong_file_of_targets_is_told(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "targets.json"
    file.write_text(text)
    with pytest.raises(Invalid, match=said):
        targets_of(Scrape(name="dcgm", targets_file=file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[scrape]]\nname = "a"', "either url or targets_file"),
        ('[[scrape]]\nname = "a"\nurl = "gpu-01:9400"', "must read http"),
        ('[[scrape]]\nname = "a"\nurl = "http://x"\ninterval_s = 5', "at most interval_s"),
        ('[[scrape]]\nname = "A b"\nurl = "http://x"', "pattern"),
        ('[[scrape]]\nname = "a"\nurl = "http://x"\nmetrics = ["("]', "regular expression"),
        ('[[scrape]]\nname = "a"\nurl = "http://x"\n' * 2, "two are named 'a'"),
        ('[[scrape]]\nname = "a"\ntargets_file = "t"\nnode = "n"', "label `node`"),
        ("[otlp_import]\nnode_attributes = []", "at least 1"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "collector.toml"
    file.write_text(text)
    with pytest.raises(Invalid, match=said):
        config.load(file)


def test_what_was_heard_is_good_for_a_while_and_a_silence_is_told_once() -> None:
    presence = Presence(10)
    presence.heard("nodes/a", 0, 25)
    presence.heard("nodes/a", 15, 5)  # another source of the node
    assert presence.due(34) == []
    ((node, silent_s),) = presence.due(36)
    assert (node, silent_s) == ("nodes/a", 21)
    presence.forget(node)
    assert presence.due(1000) == []
    presence.heard("nodes/a", 1000, 25)
    assert presence.due(1010) == []
