"""Every run knows the revision of its data, and one can be trained on from a revision alone."""

import json
import subprocess

import pytest
import yaml
from mlflow import MlflowClient
from small_clip import draw_shades

from hf_clip_domain.cli.main import main
from hf_clip_domain.data.versions.repository import dvc, dvc_program

SPLITS = ["train"] * 24 + ["validation"] * 20 + ["test"] * 20


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "t@example.org")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))


@pytest.mark.slow
@pytest.mark.skipif(dvc_program() is None, reason='needs dvc: pip install "hf-clip-domain[dvc]"')
def test_a_run_trains_from_a_revision_and_records_it(tmp_path, train, monkeypatch, capsys):
    root, store = tmp_path / "repository", f"sqlite:///{tmp_path / 'mlflow.db'}"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    dvc(["init", "--quiet"], root)
    draw_shades(root / "pairs", SPLITS, "shade")
    monkeypatch.chdir(root)
    assert main(["data", "snapshot", "pairs"]) == 0
    revision = capsys.readouterr().out.splitlines()[-1]
    for picture in (root / "pairs").glob("*.png"):
        picture.unlink()  # the run needs none of what lies here now
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    commit = revision.split(":")[1]
    assert train(tmp_path / "run", "--dataset", f"dvc:{commit[:7]}") == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    content = yaml.safe_load((root / "pairs.dvc").read_text())["outs"][0]["md5"]
    assert report["extra"]["dataset"] == {"revision": revision, "content": content, "changed": False}
    configuration = (tmp_path / "run" / "run.yaml").read_text()
    assert configuration.splitlines()[-1] == f"# dataset revision: {revision}"
    assert yaml.safe_load(configuration)["dataset"] == f"dvc:{commit[:7]}"
    assert f"Dataset revision: `{revision}`." in (tmp_path / "run" / "README.md").read_text()
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("hf-clip-domain").experiment_id])
    assert run.data.tags["dataset_revision"] == revision and run.data.tags["dataset_content"] == content
    assert run.data.tags["dataset_changed"] == "False"


@pytest.mark.slow
def test_a_run_on_changed_data_says_so(tmp_path, train, capsys, monkeypatch):
    warned = []
    monkeypatch.setattr("hf_clip_domain.cli.tracking.logger.warning", warned.append)
    draw_shades(tmp_path / "pairs", SPLITS, "shade")
    assert main(["data", "snapshot", str(tmp_path / "pairs")]) == 0
    (tmp_path / "pairs" / "readme.txt").write_text("new")
    capsys.readouterr()
    assert train(tmp_path / "run", "--dataset", str(tmp_path / "pairs")) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    found = report["extra"]["dataset"]
    assert found["changed"] and f"Dataset revision: {found['revision']}" in printed
    assert "(which no snapshot holds)" in (tmp_path / "run" / "README.md").read_text()
    assert len(warned) == 1 and f"data snapshot {tmp_path / 'pairs'}" in warned[0]
