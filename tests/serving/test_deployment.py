"""The files under docs/deployment fit the server: its options, paths, ports, times and metrics."""

import argparse
import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from hf_clip_domain.cli.serve import add_parser, settings_from
from hf_clip_domain.serving.auth import read_keys

FOLDER = Path(__file__).parents[2] / "docs" / "deployment"
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}


@pytest.fixture(scope="module")
def objects():
    found = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    return {item["kind"]: item for item in found}


@pytest.fixture(scope="module")
def pod(objects):
    return objects["Deployment"]["spec"]["template"]


@pytest.fixture(scope="module")
def settings(pod, tmp_path_factory):
    commands = argparse.ArgumentParser().add_subparsers()
    add_parser(commands)
    (container,) = pod["spec"]["containers"]
    return settings_from(commands.choices["serve"].parse_args(container["args"]))


def test_objects_refer_to_each_other(objects, pod):
    assert set(objects) == {"Secret", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    labels = pod["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels == objects["Service"]["spec"]["selector"]
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    for container in [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    secrets = {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    assert secrets == {objects["Secret"]["metadata"]["name"]}


def test_the_server_takes_its_options_and_keys(objects, pod, settings, tmp_path):
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert (
        settings.port == port["containerPort"] and objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    )
    settings.check_exposure()
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for option, name in ((settings.api_keys, "api_keys"), (settings.admin_keys, "admin_keys")):
        assert option == f"{mounted['keys']}/{name}"
        (tmp_path / name).write_text(objects["Secret"]["stringData"][name])
        assert read_keys(str(tmp_path / name))
    assert settings.model.startswith(mounted["models"])


def test_a_pod_has_time_to_finish_what_it_accepted(pod, settings):
    (container,) = pod["spec"]["containers"]
    waited = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = waited + settings.drain_seconds + settings.timeout + 5
    assert pod["spec"]["terminationGracePeriodSeconds"] > needed
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settings.drain_seconds  # seen before it closes


def test_probes_and_every_metric_are_really_there(folder, serve, pod):
    (container,) = pod["spec"]["containers"]
    paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")]
    scraped = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"][0]["metrics_path"]

    async def ask():
        async with serve(folder) as (client, _):
            await client.post("/v1/embeddings", json={"input": "a"})
            return [(await client.get(path)).status_code for path in paths], await client.get(scraped)

    statuses, answer = asyncio.run(ask())
    assert statuses == [200] * 3 and answer.status_code == 200
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    exported = {name + suffix for name, family in families.items() for suffix in SUFFIXES.get(family.type, [""])}
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    labels |= {"reason", "outcome", "job", "pod", "le"}  # of counters not yet counted, and Prometheus' own
    assert len(exported) > 10
    expressions = _expressions()
    assert len(expressions) > 15
    for expression in expressions:
        for name in re.findall(r"hf_clip_domain_\w+", expression):
            assert name in exported, name
        used = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
        used += [name for group in re.findall(r"by \(([^)]*)\)", expression) for name in group.split(", ")]
        assert set(used) <= labels, expression


def _expressions():
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert all(rule["alert"] and rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
    board = json.loads((FOLDER / "grafana.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    targets = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules] + targets + [board["templating"]["list"][1]["query"]]
