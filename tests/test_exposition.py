"""What `promtool check metrics` and `promtool check rules` look at, looked at here: the text of /metrics of web and
worker line by line, and the alert rules with their expressions parsed."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from tests.test_metrics import Watched, watched  # noqa: F401  the fixture
from tests.test_observability import FOLDER, instruments

METRIC = re.compile(r"[a-z][a-z0-9_]*")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"')
SAMPLE = re.compile(r"(?P<name>[^ {]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
KINDS = {"counter", "gauge", "histogram", "summary", "untyped"}
PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
NO_UNITS = ("_ms", "_milliseconds", "_minutes", "_hours", "_days", "_kb", "_mb", "_kilobytes", "_megabytes", "_percent")


# ---- the exposition


@dataclass
class Family:
    kind: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)


def families(text: str) -> dict[str, Family]:
    """Parsed strictly: each family whole, in one place, HELP and TYPE once and first, and no series twice."""
    assert text.endswith("\n") and "\r" not in text
    found: dict[str, Family] = {}
    helped: set[str] = set()
    current = ""
    for line in text.splitlines():
        assert line and line == line.strip(), repr(line)
        if line.startswith("# HELP "):
            _, _, name, says = line.split(" ", 3)
            assert name not in helped and says.strip(), line
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert current in helped and current not in found and kind in KINDS, line
            found[current] = Family(kind)
        else:
            assert not line.startswith("#"), line
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            name, family = sample["name"], found[current]
            assert name in [current + part for part in PARTS[family.kind]], f"{name} stands in {current}"
            series = (name, labels(sample["labels"] or ""))
            assert series not in family.samples, line
            family.samples[series] = float(sample["value"])
    assert helped == found.keys()
    return found


def labels(text: str) -> tuple[tuple[str, str], ...]:
    found = LABEL.findall(text)
    assert ",".join(f'{name}="{value}"' for name, value in found) == text, text
    names = [name for name, _ in found]
    assert len(set(names)) == len(names) and not any(name.startswith("__") for name in names)
    return tuple(sorted(found))


def lint(name: str, family: Family) -> None:
    """The house rules of Prometheus for names."""
    assert METRIC.fullmatch(name) and "__" not in name, name
    assert (family.kind == "counter") == name.endswith("_total"), name
    assert not name.endswith((*NO_UNITS, "_bucket", "_count", "_sum", "_info")), name
    assert not any(kind in name.split("_") for kind in KINDS), f"{name} names its kind"
    if family.kind == "histogram":
        assert name.endswith(("_seconds", "_bytes")), name
    for _, pairs in family.samples:
        for label, _ in pairs:
            assert re.fullmatch(r"[a-z][a-z_]*", label), label
            assert (label == "le") <= (family.kind == "histogram")


def buckets_rise(name: str, family: Family) -> None:
    rows: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for (part, pairs), value in family.samples.items():
        if part.endswith("_bucket"):
            rest = tuple(pair for pair in pairs if pair[0] != "le")
            rows[rest].append((float(dict(pairs)["le"]), value))
    for rest, row in rows.items():
        bounds, counts = [le for le, _ in row], [count for _, count in row]
        assert bounds == sorted(set(bounds)) and bounds[-1] == math.inf, name
        assert counts == sorted(counts), name
        assert counts[-1] == family.samples[f"{name}_count", rest]
        assert family.samples[f"{name}_sum", rest] >= 0


@pytest.mark.parametrize("process", ["web", "worker"])
async def test_the_exposition_is_as_prometheus_wants_it(watched: Watched, process: str) -> None:  # noqa: F811
    url = "" if process == "web" else watched.worker_url
    text = (await watched.client.get(f"{url}/metrics")).text
    found = families(text)
    for name, family in found.items():
        lint(name, family)
        if family.kind == "histogram":
            buckets_rise(name, family)
    bare = {name.removesuffix("_total") for name in found}
    assert instruments().keys() <= bare
    assert {name for name in bare if not name.startswith("process_")} == instruments().keys()


@pytest.mark.parametrize(
    "bad",
    [
        "a_total 1\n",
        "# HELP a A.\n# TYPE a gauge\na 1\na 2\n",
        '# HELP a A.\n# TYPE a gauge\na{x="1",x="2"} 1\n',
        '# HELP a A.\n# TYPE a gauge\na{x="1"y="2"} 1\n',
        "# HELP a A.\n# TYPE a gauge\nb 1\n",
        "# HELP a A.\n# TYPE a gauge\n# TYPE a gauge\na 1\n",
        "# HELP a A.\n# TYPE a gauge\na 1",
        "# TYPE a gauge\na 1\n",
    ],
)
def test_the_check_sees_what_is_wrong(bad: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        families(bad)


# ---- the rules

TOKEN = re.compile(
    r'\s*(?:(\d+(?:\.\d+)?)|(\[\d+[smhd]\])|("[^"]*")|([a-zA-Z_:][\w:]*)|(==|!=|>=|<=|=~|!~|[-+*/%^<>=(){},]))'
)
AGGREGATIONS = {"sum", "max", "min", "avg", "count", "topk"}
OF_RANGE = {"rate", "increase", "irate", "delta"}
SCALAR = {"time"}
OPERATORS = [{"or"}, {"and", "unless"}, {"==", "!=", ">", "<", ">=", "<="}, {"+", "-"}, {"*", "/", "%"}]


class Expression:
    """A PromQL expression read from left to right; what does not parse, or is of the wrong type, is an error."""

    def __init__(self, text: str) -> None:
        self.tokens = list(self._split(text))
        self.at = 0
        self.kind = self._binary(0)
        assert self.at == len(self.tokens), f"{self.tokens[self.at :]} is left of {text}"

    def _split(self, text: str) -> Iterator[str]:
        at = 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            assert match, text[at:]
            yield next(group for group in match.groups() if group)
            at = match.end()

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next()
        assert not wanted or token in wanted, f"{token!r} in place of {wanted}"
        self.at += 1
        return token

    def _binary(self, level: int) -> str:
        if level == len(OPERATORS):
            return self._unary()
        kind = self._binary(level + 1)
        while (operator := self._next()) in OPERATORS[level]:
            self._take()
            other = self._binary(level + 1)
            assert "range" not in (kind, other), operator
            assert level > 1 or kind == other == "vector", f"{operator} is of vectors"
            kind = "vector" if "vector" in (kind, other) else "scalar"
        return kind

    def _unary(self) -> str:
        token = self._take()
        if token == "(":
            kind = self._binary(0)
            self._take(")")
            return kind
        if token[0].isdigit():
            return "scalar"
        if token in AGGREGATIONS:
            return self._aggregation()
        if self._next() == "(":
            return self._function(token)
        return self._selector(token)

    def _aggregation(self) -> str:
        if self._next() in ("by", "without"):
            self._take()
            self._names()
        self._take("(")
        assert self._binary(0) == "vector"
        self._take(")")
        if self._next() in ("by", "without"):
            self._take()
            self._names()
        return "vector"

    def _names(self) -> None:
        self._take("(")
        while self._take().isidentifier():
            if self._take(",", ")") == ")":
                return
        raise AssertionError("names of labels")

    def _function(self, name: str) -> str:
        self._take("(")
        if name in SCALAR:
            self._take(")")
            return "scalar"
        if name == "histogram_quantile":
            assert self._binary(0) == "scalar"
            self._take(",")
            assert self._binary(0) == "vector"
        else:
            assert name in OF_RANGE, f"no such function: {name}"
            assert self._binary(0) == "range", f"{name} is of a range"
        self._take(")")
        return "vector"

    def _selector(self, name: str) -> str:
        assert name.isidentifier(), name
        if self._next() == "{":
            self._take()
            while self._take().isidentifier():
                self._take("=", "!=", "=~", "!~")
                assert self._take().startswith('"')
                if self._take(",", "}") == "}":
                    break
        if self._next().startswith("["):
            self._take()
            return "range"
        return "vector"


def groups() -> list[dict[str, Any]]:
    document = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    assert document.keys() == {"groups"}
    return list(document["groups"])


def test_the_rules_are_as_prometheus_wants_them() -> None:
    assert len({group["name"] for group in groups()}) == len(groups())
    for group in groups():
        assert group.keys() <= {"name", "interval", "rules"}
        for rule in group["rules"]:
            assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}, rule
            assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
            assert re.fullmatch(r"\d+[smhd]", rule["for"]), rule
            assert all(isinstance(value, str) for value in (*rule["labels"].values(), *rule["annotations"].values()))
            assert Expression(rule["expr"]).kind == "vector", rule["alert"]
            for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
                assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"]), "a label that the expression keeps"


def test_the_dashboards_expressions_parse() -> None:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert Expression(target["expr"]).kind == "vector", target["expr"]


@pytest.mark.parametrize(
    "bad",
    ["sum(rate(a_total))", "rate(a_total)", "a >", "a{b=1}", "sum by a (b)", "a b", "(a", "a[5m]) ", "frob(a[5m])"],
)
def test_the_parser_refuses_what_is_none(bad: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        Expression(bad)
