"""The DAGs of recipes/airflow_dag.py in a real Airflow, on embedded samples, with real DVC and a real registry.

Airflow's environment is made once in the folder that `AIRFLOW_ENVIRONMENT` names (two to five minutes), or anew in a
temporary one.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.data.versions.repository import dvc, dvc_program
from hf_clip_domain.ops.drift.reference import REFERENCE_FILE, Reference
from hf_clip_domain.serving.statistics import RequestStatistics

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "airflow_dag.py"
AIRFLOW = "apache-airflow==3.3.2"
MODEL = "figures"
# A small model that has learned nothing yet, until it is plainly better than that.
TRAIN = ["--domain", "general", "--probe_dataset", "none", "--precision", "fp32", "--skip_device_check"]
TRAIN += ["--max_steps", "80", "--per_device_train_batch_size", "32", "--micro_batch_size", "32"]
TRAIN += ["--learning_rate", "2e-3", "--dataloader_num_workers", "0", "--monitor", "false"]
TRAIN += ["--save_strategy", "steps", "--save_steps", "80", "--eval_strategy", "steps", "--eval_steps", "80"]


@pytest.fixture(scope="module")
def airflow_program(tmp_path_factory):
    folder = Path(os.environ.get("AIRFLOW_ENVIRONMENT") or tmp_path_factory.mktemp("airflow") / "environment")
    program = folder / "bin" / "airflow"
    if not program.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", AIRFLOW], check=True)
    return str(program)


@pytest.fixture
def server():
    """Stands in for a model server; remembers what it was asked to load."""
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def world(tmp_path, monkeypatch, base, server, airflow_program):
    """A repository of embedded samples, and Airflow with the DAGs and their settings; `(folder, call Airflow)`."""
    repository = tmp_path / "repository"
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "t@example.org")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    write_samples(repository / "data" / "pairs")
    subprocess.run(["git", "init", "--quiet"], cwd=repository, check=True)
    if dvc_program() is not None:
        dvc(["init", "--quiet"], repository)
        dvc(["remote", "add", "--default", "store", str(tmp_path / "remote")], repository)
    settings = {
        "command": write_command(tmp_path / "hf-clip-domain"),
        "folder": str(repository),
        "dataset": "data/pairs",
        "runs": str(tmp_path / "runs"),
        "name": MODEL,
        "tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "snapshot": ["--push"] if dvc_program() is not None else [],
        "train": ["--model_name_or_path", base, *TRAIN],
        "promote": ["--export", "none"],
        "server": server[0],
        "statistics": str(tmp_path / "statistics"),
    }
    home = tmp_path / "airflow"
    (home / "dags").mkdir(parents=True)
    shutil.copy(RECIPE, home / "dags")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_VAR_CLIP_ADAPTATION": json.dumps(settings),
        "AIRFLOW_VAR_CLIP_ADMIN_API_KEY": "the-key",
    }
    environment.pop("PYTHONPATH", None)

    def airflow(*arguments):
        done = subprocess.run(
            [airflow_program, *arguments], env=environment, cwd=home, capture_output=True, text=True, timeout=900
        )
        (tmp_path / "airflow.log").write_text(done.stdout + done.stderr)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout + done.stderr

    airflow("db", "migrate")
    airflow("dags", "reserialize")
    airflow("dags", "unpause", "clip_adapt")  # new ones are paused, and then no event makes them run
    return tmp_path, airflow


def write_samples(folder):
    folder.mkdir(parents=True)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as table:
        for split, rows in load_samples("general", train=300, validation=40, test=60).items():
            for number, row in enumerate(rows):
                (folder / f"{split}-{number}.jpg").write_bytes(row["image"]["bytes"])
                told = {key: row[key] for key in ("text", "label", "group")}
                table.write(json.dumps({"file_name": f"{split}-{number}.jpg", **told, "split": split}) + "\n")


def write_command(file):
    """The command as it is in this checkout, wherever Airflow calls it."""
    file.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m hf_clip_domain.cli.main "$@"\n', encoding="utf-8"
    )
    file.chmod(0o755)
    return str(file)


def registry(folder):
    """Versions, aliases and the number of runs, which a second try must not change."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    versions = sorted(version.version for version in client.search_model_versions(f"name = '{MODEL}'"))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return versions, dict(client.get_registered_model(MODEL).aliases), len(client.search_runs(experiments))


def commits(folder):
    return subprocess.run(
        ["git", "log", "--format=%H"], cwd=folder / "repository", capture_output=True, text=True
    ).stdout.split()


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_the_dags_run_to_their_end_and_a_second_time_change_nothing(world, server):
    folder, airflow = world
    said = airflow("dags", "test", "clip_adapt")
    versions, aliases, runs = registry(folder)
    assert [int(version) for version in versions] == [1] and {k: int(v) for k, v in aliases.items()} == {"champion": 1}
    deployed = json.loads((folder / "runs" / "deployed.json").read_text())
    run = Path(deployed["folder"])
    assert json.loads((run / "promotion.json").read_text())["decision"] == "promoted"
    scores = json.loads((run / "scores.json").read_text())
    report = json.loads((run / "evaluation.json").read_text())
    assert scores["after"]["text_to_image/mrr"] == pytest.approx(report["after"]["text_to_image/mrr"], abs=1e-4)
    assert report["extra"]["dataset"]["revision"] == deployed["revision"]
    if dvc_program() is not None:
        assert deployed["revision"] == f"dvc:{commits(folder)[0][:12]}:data/pairs"
    assert server[1] == [("/admin/reload", "Bearer the-key", {"version": "1"})]
    assert "No server has written statistics since the deployment" in said and "the-key" not in said

    weights, history = (run / "model.safetensors").stat().st_mtime_ns, commits(folder)
    airflow("dags", "test", "clip_adapt")
    assert registry(folder) == (versions, aliases, runs) and commits(folder) == history
    assert (run / "model.safetensors").stat().st_mtime_ns == weights
    assert json.loads((folder / "runs" / "deployed.json").read_text()) == deployed

    assert events(folder) == (0, 0)
    write_traffic(folder / "statistics", run)
    airflow("dags", "test", "clip_watch")
    assert events(folder) == (1, 1)  # and the scheduler is to run clip_adapt for it
    assert json.loads((folder / "runs" / "drift" / "drift.json").read_text())


def events(folder):
    """Events of drift, and adaptations that wait for the scheduler because of them."""
    with sqlite3.connect(folder / "airflow" / "airflow.db") as database:
        counted = (
            database.execute(f"select count(*) from {table}") for table in ("asset_event", "asset_dag_run_queue")
        )
        return tuple(rows.fetchone()[0] for rows in counted)


def write_traffic(folder, model):
    """What a server of this model would keep of pictures and texts unlike those that it was adapted to."""
    meta = Reference.load(model / REFERENCE_FILE).meta
    statistics = RequestStatistics(folder, revision=meta["revision"], resolution=meta["resolution"])
    draw = np.random.default_rng(0)
    for _ in range(4):
        rows = [draw.normal(size=(500, 16)).astype(np.float32) + 1 for _ in range(2)]
        image, text = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
        for start in range(500):
            one = slice(start, start + 1)
            statistics.record(image_embeds=image[one], text_embeds=text[one])
    statistics.close()
