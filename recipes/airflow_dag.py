"""Two DAGs for Airflow 3: adapt CLIP to the data as it is now, and do so again when the traffic has drifted.

`clip_adapt`: snapshot -> validate -> train -> evaluate -> gate -> register -> deploy -> monitor, by hand or whenever
`clip_watch` has found drift. Copy this file into Airflow's folder of DAGs. It needs Airflow alone: every task calls the
command `hf-clip-domain` of the project's own environment. Each step finds what an earlier try has done, so that a retry
repeats nothing. Settings are the JSON of the Airflow variable `clip_adaptation` (or of the environment's
`AIRFLOW_VAR_CLIP_ADAPTATION`); docs/orchestration.md explains them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

try:
    from airflow.sdk import Asset, Variable, dag, task
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
except ImportError as error:
    raise SystemExit(
        "Airflow is not installed here. It lives in an environment of its own: "
        "python -m venv airflow && airflow/bin/pip install apache-airflow (docs/orchestration.md)."
    ) from error

DEFAULTS = {
    "command": "hf-clip-domain",  # of the project's environment, with its path
    "folder": ".",  # in which commands are called: the repository of the data
    "dataset": "",  # file or folder of pairs; empty for the embedded samples
    "runs": "outputs/airflow",  # every dataset revision with its settings has a folder of its own there
    "name": "clip",  # of the registered model
    "snapshot": [],  # further options of each command ...
    "validate": [],
    "train": [],
    "promote": [],
    "monitor": [],
    "tracking_uri": "",  # of MLflow; empty for what the environment says
    "server": "",  # http://host:port of a server to reload; empty where servers follow the alias by themselves
    "statistics": "",  # folder of the request statistics of the servers; empty for no monitoring
}
DRIFT = Asset("clip_drift")
REFUSED, DRIFTED = 3, 3  # exit statuses of promote and of monitor
OPTIONS = {
    "catchup": False,
    "max_active_runs": 1,  # two runs would share folders
    "default_args": {"retries": 2, "retry_delay": timedelta(minutes=2)},
    "tags": ["clip"],
}


def settings() -> dict:
    """The variable over the defaults."""
    given = Variable.get("clip_adaptation", default={}, deserialize_json=True)
    if unknown := set(given) - set(DEFAULTS):
        raise AirflowFailException(f"clip_adaptation: unknown {sorted(unknown)}; there are {sorted(DEFAULTS)}.")
    return {**DEFAULTS, **given}


def call(*arguments: str, also: tuple[int, ...] = ()) -> tuple[int, str]:
    """Call the command with its output in the task's log; its exit status and what it printed.

    Raises:
        RuntimeError: it failed, which may be tried again; `also` are further statuses that are none.
        AirflowFailException: wrong usage, which will not be better the next time.
    """
    told = settings()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if told["tracking_uri"]:
        environment["MLFLOW_TRACKING_URI"] = told["tracking_uri"]
    print("$ hf-clip-domain", *arguments, flush=True)
    process = subprocess.Popen(
        [told["command"], *arguments],
        cwd=told["folder"],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        process.wait()
    finally:
        process.terminate()  # of use only when this task itself is being stopped
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    if process.returncode == 2:
        raise AirflowFailException(f"wrong usage: {last}")
    if process.returncode not in (0, *also):
        raise RuntimeError(f"{arguments[0]} ended with status {process.returncode}: {last}")
    return process.returncode, "".join(lines)


def runs() -> Path:
    """The folder of the runs."""
    return Path(settings()["folder"], settings()["runs"]).absolute()


def write(file: Path, content: dict) -> None:
    """JSON, whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)


def deployed() -> dict:
    """What `deploy` deployed last; empty before."""
    file = runs() / "deployed.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def drifted(current: dict) -> bool:
    """Compare the traffic since the deployment with what the deployed model was adapted to.

    Raises:
        AirflowSkipException: nothing is deployed, no statistics are kept, or there are none yet.
    """
    folder = settings()["statistics"]
    if not folder or not current:
        raise AirflowSkipException("There is nothing to compare: no `statistics` in the settings, or nothing deployed.")
    windows = Path(settings()["folder"], folder).glob("window-*.npz")
    if not any(window.stat().st_mtime > current["time"] for window in windows):
        raise AirflowSkipException("No server has written statistics since the deployment.")
    output = str(runs() / "drift")
    more = settings()["monitor"]
    status, _ = call("monitor", current["folder"], "--statistics", folder, "--output", output, *more, also=(DRIFTED,))
    return status == DRIFTED


@dag(schedule=[DRIFT], doc_md=__doc__, **OPTIONS)
def clip_adapt():
    @task
    def snapshot() -> dict:
        """Keep the data as it is now; of unchanged data the revision is the one of before."""
        dataset = settings()["dataset"]
        if not dataset:
            return {"revision": "embedded samples", "dataset": ""}
        _, told = call("data", "snapshot", dataset, *settings()["snapshot"])
        revision = re.findall(r"^(?:dvc|md5):.*$", told, re.MULTILINE)[-1]
        return {"revision": revision, "dataset": revision if revision.startswith("dvc:") else dataset}

    @task
    def validate(data: dict) -> dict:
        """Fail where the data is not fit to train on."""
        if data["dataset"]:
            call("data", "validate", data["dataset"], *settings()["validate"])
        return data

    @task
    def train(data: dict) -> dict:
        """Train, go on where a try was stopped, or find the run of the same data and options finished."""
        options = settings()["train"]
        key = hashlib.sha256(json.dumps([data["revision"], options]).encode()).hexdigest()[:12]
        folder = runs() / key
        done = folder / "airflow.json"
        if not done.is_file():
            given = ["--dataset", data["dataset"]] if data["dataset"] else []
            resumed = ["--resume_from_checkpoint"] if any(folder.glob("checkpoint-*")) else []
            call("train", *given, *options, "--output_dir", str(folder), *resumed)
            write(done, data)
        return {**data, "folder": str(folder)}

    @task
    def evaluate(run: dict) -> dict:
        """Score the model as it was saved, beside its base, on the test pairs."""
        folder = Path(run["folder"])
        before = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["base_model"]
        given = ["--dataset", run["dataset"]] if run["dataset"] else []
        output = ["--output", str(folder / "scores.json"), "--html", str(folder / "scores.html")]
        domain = ["--domain", str(folder / "domain.yaml")]
        call("evaluate", str(folder), "--before", before, *domain, *given, *output)
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["after"]
        print({name: value for name, value in scores.items() if name.endswith("recall@10")})
        return run

    @task.short_circuit
    def gate(run: dict) -> dict | None:
        """Whether the model would be promoted; nothing is registered and the rest is skipped if not."""
        output = str(Path(run["folder"]) / "gate.json")
        more = ["--dry_run", "--output", output, *settings()["promote"]]
        status, _ = call("promote", settings()["name"], "--candidate", run["folder"], *more, also=(REFUSED,))
        return run if status == 0 else None

    @task
    def register(run: dict) -> dict:
        """A version of the registered model; the one of before for the same weights."""
        _, told = call("register", run["folder"], "--name", settings()["name"])
        return {**run, "version": re.findall(r"models:/[^/\n]+/(\d+)", told)[-1]}

    @task
    def deploy(run: dict) -> dict:
        """Move the champion's alias, which decides once more against the champion of this moment, and reload the server."""
        output = str(Path(run["folder"]) / "promotion.json")
        more = ["--output", output, *settings()["promote"]]
        status, _ = call("promote", settings()["name"], "--candidate", run["version"], *more, also=(REFUSED,))
        if status == REFUSED:
            raise AirflowFailException(
                f"Refused after all, since another champion has come meanwhile: {output} says why."
            )
        if settings()["server"]:
            reload(settings()["server"], run["version"])
        current = {**run, "time": Path(output).stat().st_mtime}
        if {**deployed(), "time": 0} != {**current, "time": 0}:
            write(runs() / "deployed.json", current)
        return current

    @task
    def monitor(run: dict) -> None:
        """The first look at the traffic of the new model. What comes later is for `clip_watch`."""
        print("drift" if drifted(deployed()) else f"the traffic is what {run['folder']} was adapted to")

    monitor(deploy(register(gate(evaluate(train(validate(snapshot())))))))


@dag(schedule="@daily", **OPTIONS)
def clip_watch():
    @task(outlets=[DRIFT])
    def watch() -> None:
        """Ask for another adaptation when the traffic has drifted."""
        if not drifted(deployed()):
            raise AirflowSkipException("No drift.")  # a task that is skipped tells nobody

    watch()


def reload(server: str, version: str) -> None:
    """Have a server load the version; one that serves it already loads it again.

    Raises:
        RuntimeError: it cannot be reached, or refuses: the model before goes on serving.
    """
    request = urllib.request.Request(f"{server.rstrip('/')}/admin/reload", json.dumps({"version": version}).encode())
    request.add_header("Content-Type", "application/json")
    if key := Variable.get("clip_admin_api_key", default=None):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            print(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{server} refuses: {error.read().decode(errors='replace')[:500]}") from error
    except OSError as error:
        raise RuntimeError(f"{server} cannot be reached: {error}") from error


clip_adapt()
clip_watch()
