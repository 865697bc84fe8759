"""The few kinds of panel that our dashboards are made of: each with a unit, a description and the chosen data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import common as shape
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
TAG = "switchgear"
_SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
_LETTERS = "ABCDEFGH"

#: (from this value on, colour), ascending; the first colour holds below its value too.
Steps = Sequence[tuple[float, str]]
AnyPanel = timeseries.Panel | stat.Panel | table.Panel
_P = TypeVar("_P", timeseries.Panel, stat.Panel, table.Panel)


@dataclass(frozen=True, slots=True)
class Query:
    """expr: PromQL with Grafana's variables. legend: name of each series (`{{label}}` is replaced) or of a table's column."""

    expr: str
    legend: str = ""


def timeline(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    stacked: bool = False,
    steps: Steps = (),
    max_value: float | None = None,
) -> timeseries.Panel:
    """Values over time. stacked: areas that add up to a whole. steps: drawn as dashed lines. unit: Grafana's id of it."""
    panel = (
        timeseries.Panel()
        .legend(
            shape.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .tooltip(shape.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .min(0)
    )
    if max_value is not None:
        panel.max(max_value)
    if stacked:
        panel.stacking(shape.StackingConfig().mode(common.StackingMode.NORMAL))
    if steps:
        panel.thresholds_style(shape.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED))
    for letter, query in zip(_LETTERS, queries, strict=False):
        panel.with_target(_query(letter, query).range())
    return _common(panel, title, description, unit, steps).span(width).height(8)


def number(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str,
    steps: Steps = (),
    width: int = 4,
    decimals: int | None = None,
) -> stat.Panel:
    """One number as it is now, with its course behind it; coloured by its threshold when it has steps."""
    panel = (
        stat.Panel()
        .reduce_options(shape.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(common.BigValueColorMode.BACKGROUND if steps else common.BigValueColorMode.NONE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .with_target(_query("A", query).range())
    )
    if decimals is not None:
        panel.decimals(decimals)
    return _common(panel, title, description, unit, steps).span(width).height(4)


def rows(title: str, description: str, *queries: Query, key: str, unit: str = "short", width: int = 12) -> table.Panel:
    """A row for each value of the label `key`, a column for each query under its legend, as it is now."""
    panel = table.Panel()
    for letter, query in zip(_LETTERS, queries, strict=False):
        panel.with_target(_query(letter, query).instant().format(PromQueryFormat.TABLE))
    # Each query comes as a frame with a column of its own; joined on the key they stand side by side.
    names = {f"Value #{letter}": query.legend for letter, query in zip(_LETTERS, queries, strict=False)}
    if len(queries) > 1:
        panel.with_transformation(
            dashboard.DataTransformerConfig(id_val="joinByField", options={"byField": key, "mode": "outer"})
        )
    else:
        names = {"Value": queries[0].legend}
    hidden = dict.fromkeys(("Time", *(f"Time {number}" for number in range(1, len(queries) + 1))), True)
    panel.with_transformation(
        dashboard.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden, "renameByName": names})
    )
    return _common(panel, title, description, unit, ()).span(width).height(8)


def quantiles(histogram: str, matchers: str, *by: str, window: str = "$__rate_interval") -> list[Query]:
    """Median and 95th percentile of a histogram, for each value of the labels `by`."""
    labels = ", ".join(("le", *by))
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    rate = f"sum by ({labels}) (rate({histogram}_bucket{{{matchers}}}[{window}]))"
    return [
        Query(f"histogram_quantile({quantile}, {rate})", f"{legend} {name}".strip())
        for quantile, name in ((0.5, "p50"), (0.95, "p95"))
    ]


def grown(counter: str, matchers: str, *by: str) -> str:
    """By how much a counter has grown in the last hour.

    A series that was not there an hour ago began at 0, unseen: `increase` would miss its first event, and of faults that is often the only one.
    """
    series = f"{counter}{{{matchers}}}" if matchers else counter
    return f"sum by ({', '.join(by)}) (({series} unless {series} offset 1h) or increase({series}[1h]))"


def label_variable(name: str, metric: str, description: str, *, label: str = "") -> builders.QueryVariable:
    """A choice among the values of a label of a metric; all of them until the reader chooses.

    label: of the metric, when it is not called as the variable.
    """
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .description(description)
        .datasource(_SOURCE)
        .query({"query": f"label_values({metric}, {label or name})", "refId": name})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    )


def board(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[builders.QueryVariable],
    sections: Sequence[tuple[str, Sequence[AnyPanel]]],
) -> dashboard.Dashboard:
    """A dashboard of titled rows; links lead to the others, and keep the time range."""
    built = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(
            builders.DatasourceVariable("datasource")
            .label("Data source")
            .description("The Prometheus that scrapes this installation.")
            .type("prometheus")
        )
        .link(
            builders.DashboardLink("Switchgear")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .tooltip("The other dashboards of this installation")
        )
    )
    for variable in variables:
        built.with_variable(variable)
    panel_id = 1
    for heading, panels in sections:
        built.with_row(builders.Row(heading).id(panel_id))
        for panel in panels:
            panel_id += 1
            built.with_panel(panel.id(panel_id))
        panel_id += 1
    return built.build()


def _query(letter: str, query: Query) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend).datasource(_SOURCE)


def _common(panel: _P, title: str, description: str, unit: str, steps: Steps) -> _P:
    levels: Steps = steps or [(0.0, GREEN)]
    thresholds = [
        dashboard.Threshold(value=None, color=levels[0][1]),
        *(dashboard.Threshold(value=value, color=color) for value, color in levels[1:]),
    ]
    return (
        panel.title(title)
        .description(description)
        .unit(unit)
        .datasource(_SOURCE)
        .thresholds(builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(thresholds))
    )
