"""The dashboard and the rules in deploy/ ask for metrics and labels that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.metrics import METRICS as CONTROLPLANE
from downstaird.metrics import METRICS as DOWNSTAIRS
from stairlib.rpc.call_guard import RPC_METRICS
from stairlib.telemetry.metrics import exposed_name
from stairlib.telemetry.process_metrics import PROCESS_METRICS
from vmmd.metrics import METRICS as VMMD

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "stairwell.json"
RULES = DEPLOY / "prometheus" / "alerts.yml"
# Of whoever reads: which target it was, and Prometheus' own series on each.
READERS = {"up": ()}
READERS_LABELS = {"job", "instance", "le"}
# What a query is made of besides metrics and labels.
WORDS = {
    "and", "by", "count", "histogram_quantile", "increase", "label_values", "max",
    "min_over_time", "on", "or", "rate", "sum", "vector",
}  # fmt: skip
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]')
_NAME = re.compile(r"\b[a-zA-Z_]\w*\b")
_USE = re.compile(r"([a-zA-Z_]\w*)\s*(?:\{([^}]*)\})?")


def known() -> dict[str, set[str]]:
    """The labels of each series that is exposed, by its name."""
    found: dict[str, set[str]] = {name: set(labels) for name, labels in READERS.items()}
    for metric in (*CONTROLPLANE, *VMMD, *DOWNSTAIRS, *PROCESS_METRICS, *RPC_METRICS):
        name = exposed_name(metric)
        ends = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        found.update({name + end: set(metric.labels) for end in ends})
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    variables = [each for each in board["templating"]["list"] if each["type"] == "query"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [
        each["query"]["query"] for each in variables
    ]


def problems(query: str, series: dict[str, set[str]]) -> list[str]:
    """What of a query does not exist."""
    wrong = []
    bare = _TEXT.sub("", query)
    used: set[str] = set()
    for name, matchers in _USE.findall(bare):
        if name in series:
            used.add(name)
            labels = set(_NAME.findall(matchers or ""))
            unknown = labels - series[name] - READERS_LABELS
            wrong += [f"{name} has no label {label}" for label in sorted(unknown)]
    # Labels of groupings, and of the values that are listed.
    allowed = set().union(*(series[name] for name in used)) | READERS_LABELS | WORDS | used
    inside = re.sub(r"\{[^}]*\}", "", bare)
    wrong += [f"{name} is unknown" for name in _NAME.findall(inside) if name not in allowed]
    if not used:
        wrong.append("it asks for no metric")
    return wrong


@pytest.mark.parametrize("query", dashboard_queries())
def test_the_dashboard_asks_for_what_there_is(query: str) -> None:
    assert problems(query, known()) == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    series = known()
    assert problems(rule["expr"], series) == []
    assert set(rule["annotations"]) == {"summary", "action"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    named = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
    labels = set().union(*(series[name] for name in series if name in rule["expr"]))
    assert set(named) <= labels | READERS_LABELS


def test_every_rule_is_in_the_document() -> None:
    text = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    table = re.findall(r"^\| ((?:[A-Z]\w+(?:, )?)+) \|", text, re.MULTILINE)
    assert sorted(name for row in table for name in row.split(", ")) == sorted(
        rule["alert"] for rule in rules()
    )


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum(stairwell_volume_request)", "stairwell_volume_request is unknown"),
        ('stairwell_volume_slots{slot="1"} > 0', "stairwell_volume_slots has no label slot"),
        ("sum by (extent) (stairwell_volume_slots)", "extent is unknown"),
        ("vector(1)", "it asks for no metric"),
    ],
)
def test_what_there_is_not_is_found(query: str, said: str) -> None:
    assert said in problems(query, known())
