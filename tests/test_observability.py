"""Alert rules and dashboard name metrics and labels that the code has, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from service import metrics

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "observability"
NAME = re.compile(r"\b(?:hitl|process)_[a-z_]+")
MATCHER = re.compile(r"(hitl_[a-z_]+)\{([^}]*)\}")
BY = re.compile(r"\bby \(([^)]*)\) \(+(?:rate|increase)?\(?(hitl_[a-z_]+)")
SUFFIXES = ("_total", "_count", "_sum", "_bucket")


def instruments() -> dict[str, set[str]]:
    """The labels of each instrument, by the name it is exposed under, without the suffixes of its kind."""
    found = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    return {each._name: set(each._labelnames) for each in found}


def bare(name: str) -> str:
    return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def targets() -> list[str]:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


EXPRESSIONS = [*(rule["expr"] for rule in rules()), *targets()]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_what_there_is(expression: str) -> None:
    known = instruments()
    names = NAME.findall(expression)
    assert names and {bare(name) for name in names} <= known.keys()
    for name, matchers in MATCHER.findall(expression):
        labels = set(re.findall(r"(\w+)=", matchers))
        assert labels <= known[bare(name)], name
    for labels, name in BY.findall(expression):
        assert {label.strip() for label in labels.split(",")} - {"le"} <= known[bare(name)], name
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_counter_is_asked_by_its_total_and_a_histogram_by_a_part(expression: str) -> None:
    kinds = {family.name: family.type for family in text_string_to_metric_families(metrics.exposition().decode())}
    for name in NAME.findall(expression):
        match kinds[bare(name)]:
            case "counter":
                assert name.endswith("_total"), name
            case "histogram":
                assert name.endswith(("_count", "_sum", "_bucket")), name
            case _:
                assert name == bare(name), name


def test_each_rule_says_what_is_wrong() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_every_instrument_but_those_of_details_is_on_the_dashboard_or_in_a_rule() -> None:
    shown = {bare(name) for expression in EXPRESSIONS for name in NAME.findall(expression)}
    details = {"hitl_job_seconds", "hitl_stood_still_seconds", "hitl_sweep_seconds", "hitl_sweep_found",
               "hitl_delivery_seconds"}  # fmt: skip
    assert instruments().keys() - shown == details
