"""Which series a caller means: PromQL's instant selectors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

import numpy as np
import re2

from switchgear.collector.blocks import Ids
from switchgear.collector.series import Keys, Labels, Layout, Schema
from switchgear.collector.windows import NodeWindow
from switchgear.core.errors import Invalid, Reason

CHARS_MAX = 4096
MATCHERS_MAX = 32
#: Of one compiled expression; a larger one is refused by RE2.
_PATTERN_BYTES_MAX = 1 << 20

_METRIC = "__name__"
_NODE = "node"
_SOURCE = "source"
_SPACE = re.compile(r"\s*")
#: PromQL's names, and dots, which OpenTelemetry's have.
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:.]*")
_OPERATOR = re.compile(r"=~|!~|!=|=")
_STRING = re.compile(r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`""")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "t": "\t", "r": "\r"}


class Operator(StrEnum):
    EQUAL = "="
    NOT_EQUAL = "!="
    MATCHES = "=~"
    MATCHES_NOT = "!~"


@dataclass(frozen=True, slots=True)
class Matcher:
    """A label that a series lacks has the empty value."""

    label: str
    operator: Operator
    value: str
    #: Compiled, for the operators with a regular expression.
    pattern: Any = None
    _known: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def matches(self, value: str) -> bool:
        known = self._known.get(value)
        if known is None:
            known = self._known[value] = self._decide(value)
        return known

    def _decide(self, value: str) -> bool:
        match self.operator:
            case Operator.EQUAL:
                return value == self.value
            case Operator.NOT_EQUAL:
                return value != self.value
            case Operator.MATCHES:
                return self.pattern.fullmatch(value) is not None
            case Operator.MATCHES_NOT:
                return self.pattern.fullmatch(value) is None


class Selector:
    """For one query: what it found out about a schema it knows for all nodes that share it."""

    def __init__(self, matchers: tuple[Matcher, ...]) -> None:
        self.matchers = matchers
        self._of_window = [matcher for matcher in matchers if matcher.label in (_NODE, _SOURCE)]
        # The metric first, and without a call: it leaves a few of hundreds.
        metrics = [matcher for matcher in matchers if (matcher.label, matcher.operator) == (_METRIC, Operator.EQUAL)]
        self._metric = metrics[0].value if metrics else None
        self._of_metric = [matcher for matcher in matchers if matcher.label == _METRIC]
        self._of_labels = [matcher for matcher in matchers if matcher.label not in (_NODE, _SOURCE, _METRIC)]
        self._columns: dict[Schema, Ids] = {}
        #: By layout: ids of the metrics that are meant, and where the labels of each are.
        self._named: dict[Layout, tuple[Ids, Ids]] = {}

    def columns(self, window: NodeWindow) -> Ids:
        """Ids of the window's series that are meant, rising."""
        own = {_NODE: window.node.partition("/")[2], _SOURCE: window.source}
        if not all(matcher.matches(own[matcher.label]) for matcher in self._of_window):
            return np.empty(0, np.int64)
        keys = window.schema.keys
        if isinstance(keys, Keys):
            return self._of_node(keys)
        columns = self._columns.get(window.schema)
        if columns is None:
            found = self._of_metrics([key.metric for key in keys])
            if self._of_labels:
                # Many metrics have the same labels: those of one GPU.
                means = {labels: self._means(labels) for labels in {keys[at].labels for at in found}}
                found = [at for at in found if means[keys[at].labels]]
            columns = self._columns[window.schema] = np.array(found, np.int64)
        return columns

    def _of_node(self, keys: Keys) -> Ids:
        """As many nodes have the same layout, of each only its sets of labels are looked at."""
        named = self._named.get(keys.layout)
        if named is None:
            names = keys.layout.names
            found = self._of_metrics([name.metric for name in names])
            places = np.array([names[at].labels_at for at in found], np.int64)
            named = self._named[keys.layout] = np.array(found, np.int64), places
        columns, places = named
        if self._of_labels:
            columns = columns[np.array([self._means(labels) for labels in keys.sets], bool)[places]]
        return columns

    def _of_metrics(self, metrics: Sequence[str]) -> list[int]:
        """Places of those that are meant."""
        found = [at for at, metric in enumerate(metrics) if self._metric in (None, metric)]
        for matcher in self._of_metric:
            found = [at for at in found if matcher.matches(metrics[at])]
        return found

    def _means(self, labels: Labels) -> bool:
        values = dict(labels)
        return all(matcher.matches(values.get(matcher.label, "")) for matcher in self._of_labels)


def parse(text: str) -> Selector:
    """Raises Invalid (BAD_FIELD), which names the column, for what is no selector."""
    if len(text) > CHARS_MAX:
        raise Invalid(f"a selector has at most {CHARS_MAX} characters", Reason.BAD_FIELD, field="selector")
    matchers = tuple(_Parser(text).matchers())
    if len(matchers) > MATCHERS_MAX:
        raise Invalid(f"a selector has at most {MATCHERS_MAX} matchers", Reason.BAD_FIELD, field="selector")
    if all(matcher.matches("") for matcher in matchers):
        raise Invalid(
            "the selector would mean every series; name a metric, or a label that must have a value",
            Reason.BAD_FIELD,
            field="selector",
        )
    return Selector(matchers)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def matchers(self) -> Iterator[Matcher]:
        if metric := self._take(_NAME):
            yield Matcher(_METRIC, Operator.EQUAL, metric)
        if self._take_sign("{"):
            while not self._take_sign("}"):
                yield self._matcher()
                if not self._take_sign(",") and not self._next("}"):
                    self._fail("expected `,` or `}`")
        if self._next_at() < len(self._text):
            self._fail(
                "nothing may follow; a range goes into the times of the query"
                if self._at
                else "expected a metric or `{`"
            )

    def _matcher(self) -> Matcher:
        label = self._take(_NAME) or self._fail("expected the name of a label")
        operator = Operator(self._take(_OPERATOR) or self._fail("expected `=`, `!=`, `=~` or `!~`"))
        begin = self._next_at()
        quoted = self._take(_STRING) or self._fail('expected a value in quotes, such as "x"')
        value = (
            quoted[1:-1] if quoted[0] == "`" else _ESCAPE.sub(lambda found: self._escaped(begin, found), quoted[1:-1])
        )
        if operator in (Operator.EQUAL, Operator.NOT_EQUAL):
            return Matcher(label, operator, value)
        options = re2.Options()
        options.max_mem = _PATTERN_BYTES_MAX
        options.log_errors = False
        try:
            return Matcher(label, operator, value, re2.compile(value, options))
        except re2.error as error:
            self._at = begin
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
            self._fail(f"no regular expression of RE2: {reason}")

    def _escaped(self, begin: int, found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            self._at = begin + 1 + found.start()
            self._fail(f"unknown escape \\{found[1]}; a regular expression needs two backslashes, or `backquotes`")
        return _ESCAPES[found[1]]

    def _next_at(self) -> int:
        space = _SPACE.match(self._text, self._at)
        return space.end() if space else self._at

    def _next(self, sign: str) -> bool:
        return self._text.startswith(sign, self._next_at())

    def _take_sign(self, sign: str) -> bool:
        if not self._next(sign):
            return False
        self._at = self._next_at() + len(sign)
        return True

    def _take(self, token: re.Pattern[str]) -> str:
        found = token.match(self._text, self._next_at())
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _fail(self, message: str) -> NoReturn:
        column = self._next_at() + 1
        raise Invalid(f"selector, column {column}: {message}", Reason.BAD_FIELD, field="selector", column=str(column))
