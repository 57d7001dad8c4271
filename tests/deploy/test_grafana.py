"""Grafana knows every field of the dashboard, and we export every metric that it asks for."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "vidgen.json").read_text())
METRICS = (ROOT / "vidgen_ray" / "cluster" / "metrics.py").read_text()


def known(tree: dict[str, Any]) -> Any:
    """What Grafana's own classes keep of a dashboard."""
    plugins.register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(tree)))


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Keys of ours that are not in theirs, at any depth."""
    if isinstance(ours, dict):
        missing = [
            f"{path}.{key}" for key in ours if not isinstance(theirs, dict) or key not in theirs
        ]
        deeper = [
            lost(value, theirs[key], f"{path}.{key}")
            for key, value in ours.items()
            if not any(m.endswith(f"{path}.{key}") for m in missing)
        ]
        return missing + [each for found in deeper for each in found]
    if isinstance(ours, list):
        return [
            each
            for number, value in enumerate(ours)
            for each in lost(value, theirs[number], f"{path}[{number}]")
        ]
    return []


def metrics_in(text: str) -> set[str]:
    names = re.findall(r"ray_(vidgen_\w+)", text)
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}


def test_grafana_knows_every_field() -> None:
    assert lost(DASHBOARD, known(DASHBOARD)) == []


def test_a_field_that_it_does_not_know_is_found() -> None:
    tree = json.loads(json.dumps(DASHBOARD))
    tree["panels"][1]["fieldConfig"]["defaults"]["unitt"] = "s"
    assert lost(tree, known(tree)) == [".panels[1].fieldConfig.defaults.unitt"]


def test_panels_have_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


@pytest.mark.parametrize("name", ["grafana/dashboards/vidgen.json", "prometheus/alerts.yml"])
def test_every_metric_asked_for_is_defined(name: str) -> None:
    asked = metrics_in((ROOT / "deploy" / name).read_text())
    defined = set(re.findall(r'"(vidgen_\w+)"', METRICS))
    # Exported by training and encoding, whose metrics are still to come.
    later = {each for each in asked - defined if re.match(r"vidgen_(train|encode)", each)}
    assert asked - defined - later == set()


def test_every_metric_defined_is_shown() -> None:
    shown = metrics_in((GRAFANA / "dashboards" / "vidgen.json").read_text())
    defined = set(re.findall(r'"(vidgen_\w+)"', METRICS))
    assert defined - shown <= {"vidgen_last_temporal_score"}  # the mean says more


def test_provisioning_finds_data_and_dashboards() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/vidgen.yml").read_text())[
        "providers"
    ]
    manual = (ROOT / "docs" / "operations.md").read_text()
    for variable in (source["url"], provider["options"]["path"]):
        assert variable.strip("${}") in manual
