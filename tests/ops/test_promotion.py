"""The champion changes for a better model only, once, and back again."""

import json
import shutil

import pytest
import torch

from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.promote import REFUSED_STATUS
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.ops import gate
from hf_clip_domain.ops.promotion import champion, previous
from hf_clip_domain.ops.registry import find, register
from hf_clip_domain.sharing.export import exporter

METRIC = ["--metric", "text_to_image/recall@1"]


@pytest.fixture
def promote(store):
    """The command, without the export, which takes long and has a test of its own."""
    return lambda name, candidate, *more: main(
        ["promote", name, "--candidate", str(candidate), *METRIC, "--export", "none", *more]
    )


def state(store, name):
    """All that a promotion may change."""
    model = store.get_registered_model(name)
    versions = {version.version: dict(version.tags) for version in store.search_model_versions(f"name = '{name}'")}
    return dict(model.aliases), dict(model.tags), versions


def test_the_champion_moves_to_better_models_and_back(store, promote, family, tmp_path, capsys):
    name = "forth and back"
    assert promote(name, family["first"], "--output", str(tmp_path)) == 0  # better than its base
    out = capsys.readouterr().out
    assert "the base model" in out and "better" in out and f"models:/{name}@champion" in out
    told = json.loads((tmp_path / "promotion.json").read_text())
    assert told["decision"] == "promoted" and told["candidate"] == "1" and told["incumbent"] == ""
    assert {check["name"]: check["passed"] for check in told["checks"]} == {
        "target": True,
        "forgetting": True,
        "resolution": True,
        "export": None,
    }
    second, _ = register(family["second"], name)
    assert promote(name, second.number, "--output", str(tmp_path / "promotion.json")) == 0
    assert champion(name).number == "2" and previous(name) == "1"
    told = json.loads((tmp_path / "promotion.json").read_text())
    target = told["checks"][0]["figures"]
    assert target["candidate"] > target["incumbent"] + 0.2 and target["interval"][0] > 0
    assert told["settings"]["dataset"].endswith("own")  # by the candidate's own run.yaml
    tags = find(name, number="2").tags
    assert tags["promotion.decision"] == "promoted" and "against" in tags["promotion.forgetting"]
    assert json.loads(tags["promotion.record"]) == told

    before = state(store, name)
    assert promote(name, "2", "--output", str(tmp_path / "again.json")) == 0
    assert promote(name, family["second"]) == 0 and state(store, name) == before
    assert "champion already" in capsys.readouterr().out and json.loads((tmp_path / "again.json").read_text()) == told

    assert main(["rollback", name, "--dry_run"]) == 0 and state(store, name) == before
    assert main(["rollback", name, "--output", str(tmp_path / "back.json")]) == 0
    assert champion(name).number == "1" and "to version 1" in find(name, number="2").tags["champion.rolled_back"]
    assert json.loads((tmp_path / "back.json").read_text())["decision"] == "rolled back"
    before = state(store, name)
    assert main(["rollback", name]) == 0 and state(store, name) == before  # nowhere to go
    for _ in range(2):
        assert promote(name, "2") == REFUSED_STATUS and champion(name).number == "1"
        assert "was rolled back" in capsys.readouterr().out
    assert main(["rollback", name, "--to", "2"]) == 0 and champion(name).number == "2"
    assert "champion.rolled_back" not in find(name, number="2").tags


def test_a_worse_or_forgetful_model_is_refused(store, promote, family, tmp_path, capsys):
    name = "refusals"
    assert promote(name, family["second"]) == 0
    options = ["--base", family["first"]]  # which knows the probe
    for folder, number, failed in (("first", "2", {"target"}), ("forgetful", "3", {"target", "forgetting"})):
        assert promote(name, family[folder], *options, "--output", str(tmp_path)) == REFUSED_STATUS
        checks = json.loads((tmp_path / "promotion.json").read_text())["checks"]
        assert {check["name"] for check in checks if check["passed"] is False} == failed
        assert find(name, number=number).tags["promotion.decision"] == "refused"
        assert champion(name).number == "1" and previous(name) is None
    assert "FAIL" in capsys.readouterr().out
    lost = next(check for check in checks if check["name"] == "forgetting")["figures"]["lost_points"]
    assert lost > 20
    assert promote(name, "3", *options, "--forgetting_budget", "100", "--output", str(tmp_path)) == REFUSED_STATUS
    checks = {
        check["name"]: check["passed"] for check in json.loads((tmp_path / "promotion.json").read_text())["checks"]
    }
    assert checks["forgetting"] and not checks["target"]
    assert main(["rollback", name]) == 1 and main(["rollback", name, "--to", "2"]) == 1
    assert "never been its champion" in capsys.readouterr().err


def test_a_dry_run_changes_nothing(store, promote, family, capsys):
    assert promote("dry", family["first"], "--dry_run") == 0
    assert "would be promoted" in capsys.readouterr().out
    assert not store.search_registered_models("name = 'dry'")
    register(family["base"], "dry")
    before = state(store, "dry")
    assert promote("dry", "1", "--dry_run") == REFUSED_STATUS and state(store, "dry") == before
    assert "would be refused" in capsys.readouterr().out


def test_models_are_measured_at_the_size_at_which_they_are_served(store, promote, family, tmp_path):
    assert promote("sizes", family["second"], "--dry_run", "--resolution", "16", "--output", str(tmp_path)) == 0
    checks = {check["name"]: check for check in json.loads((tmp_path / "promotion.json").read_text())["checks"]}
    found = checks["resolution"]["figures"]
    assert (found["resolution"], found["own"], found["budget"]) == (16, 32, 1.0)

    def recall(value):
        return Measurement({f"{way}/recall@10": value for way in ("image_to_text", "text_to_image")})

    fallen = gate.Measured(32, 16, recall(0.90), recall(0.92), {})
    assert gate.check_resolution(fallen, 2.0).passed and not gate.check_resolution(fallen, 1.9).passed
    assert gate.check_resolution(gate.Measured(32, 32, recall(0.9), recall(0.9), {}), 0.0).passed


def test_the_champion_that_was_compared_must_still_be_it(store, promote, family, monkeypatch, capsys):
    name = "race"
    assert promote(name, family["first"]) == 0
    register(family["base"], name)

    def meanwhile(*arguments):
        store.set_registered_model_alias(name, "champion", "2")
        return gate.check_export(*arguments)

    monkeypatch.setattr("hf_clip_domain.cli.promote.check_export", meanwhile)
    assert promote(name, family["second"]) == 1 and champion(name).number == "2"
    assert "another champion" in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_must_embed_alike(family, monkeypatch, tmp_path):
    pairs = load_pairs(f"{family['base']}/../own", progress=False)["test"]
    good = gate.check_export(family["first"], pairs, "onnx")
    assert good.passed and good.figures["difference"] < 1e-4
    reload = exporter._reload

    def broken(folder, record):
        model = reload(folder, record)
        torch.nn.init.normal_(model.visual_projection.weight)
        return model

    monkeypatch.setattr(exporter, "_reload", broken)
    bad = gate.check_export(family["first"], pairs, "safetensors")  # judged alike, and written in no time
    assert bad.passed is False and "not as good as the original" in bad.told
    monkeypatch.setitem(gate.PACKAGES, "onnx", ("a_package_that_nobody_has",))
    missing = gate.check_export(family["first"], pairs, "onnx")
    assert missing.passed is None and "hf-clip-domain[onnx]" in missing.told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--candidate", "7"], "no such version"),
        (["--candidate", "no/such"], "expected the number of a version"),
        (["--metric", "text_to_image/mean_rank"], "--metric text_to_image/mean_rank: expected one of"),
        (["--resolution", "0"], "--resolution 0"),
        (["--resolution", "33"], "33"),
        (["--forgetting_budget", "-1"], "--forgetting_budget"),
        (["--base", "no/such/model"], "--base names another"),
    ],
)
def test_what_cannot_be_decided_says_why(store, family, options, told, capsys):
    arguments = ["promote", "mistakes", "--candidate", family["first"], "--export", "none", "--dry_run", *options]
    assert main(arguments) == 1
    assert told in capsys.readouterr().err


def test_a_model_of_unknown_origin_needs_a_base(store, promote, family, tmp_path, capsys):
    folder = tmp_path / "plain"
    shutil.copytree(family["first"], folder)
    (folder / "evaluation.json").unlink()
    assert promote("plain", folder, "--dry_run") == 1
    assert "--base" in capsys.readouterr().err
    assert promote("plain", folder, "--dry_run", "--base", family["base"]) == 0
