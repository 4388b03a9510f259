"""Everything a run says arrives at the tracking server, once, whatever becomes of the server meanwhile."""

import time

import pytest
import yaml
from mlflow import MlflowClient

from hf_clip_domain.cli.main import main
from hf_clip_domain.ops.tracking import Journal, MlflowStore, Tracker
from hf_clip_domain.ops.tracking.record import HIDDEN, flatten, without_secrets
from hf_clip_domain.ops.tracking.sender import deliver

TOKEN = "hf_" + "a" * 30


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A store in a file, for what needs no server; made once, since MLflow builds its tables first."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def artefacts_beside_the_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def only_run(client, name, experiment="hf-clip-domain"):
    number = client.get_experiment_by_name(experiment).experiment_id
    (run,) = client.search_runs([number], f"attributes.run_name = '{name}'")
    return run


def steps(client, run, metric):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def test_a_long_parameter_is_whole_in_a_file_and_odd_names_are_taken(tmp_path, database):
    long = "x" * 20_000
    with Tracker(tmp_path / "run", "long", tracking_uri=database) as tracker:
        tracker.settings({"text": long, "loss": {"terms": [{"name": "info_nce"}, {"name": "siglip"}]}})
        tracker.tags({"revision": "v1", "absent": None, "description": long})
        tracker.metrics({"text_to_image/recall@10": 0.5, "words": "no number", "loss": float("nan")}, 3)
    client = MlflowClient(database)
    run = only_run(client, "long")
    assert tracker.left == 0 and run.info.status == "FINISHED"
    assert run.data.params["loss.terms.1.name"] == "siglip"
    assert len(run.data.params["text"]) == 6000 and "parameters.yaml" in run.data.params["text"]
    file = client.download_artifacts(run.info.run_id, "parameters.yaml", str(tmp_path))
    with open(file, encoding="utf-8") as stream:
        assert yaml.safe_load(stream)["text"] == long
    assert run.data.tags["revision"] == "v1" and "absent" not in run.data.tags
    assert steps(client, run, "text_to_image/recall_at_10") == [(3, 0.5)]


def test_secrets_are_not_written_anywhere(tmp_path, database):
    settings = {"hub_token": TOKEN, "notify": "https://hooks.example/T0/B0", "api_key": "k", "dataset": "a/b"}
    settings |= {"url": f"https://user:{TOKEN}@host/x", "tokenizer_name": "clip", "loss_settings": {"password": "p"}}
    with Tracker(tmp_path / "run", "secret", tracking_uri=database) as tracker:
        tracker.settings(settings)
        tracker.tags({"origin": f"https://user:{TOKEN}@host/x"})
    run = only_run(MlflowClient(database), "secret")
    assert run.data.params["dataset"] == "a/b" and run.data.params["tokenizer_name"] == "clip"
    assert run.data.params["hub_token"] == run.data.params["notify"] == run.data.params["api_key"] == HIDDEN
    kept = "".join(path.read_text() for path in tracker.folder.iterdir())
    assert TOKEN not in kept + str(run.to_dictionary()) and "hooks.example" not in kept


def test_flat_names():
    assert flatten({"a": {"b": [1, 2]}, "c": None, "d": [], "e": True}) == {"a.b": "[1, 2]", "e": "True"}
    assert without_secrets("s3://bucket/key and ghp_" + "b" * 36) == f"s3://bucket/key and {HIDDEN}"


def test_a_failure_and_a_part_are_recorded_as_such(tmp_path, database):
    with pytest.raises(ValueError), Tracker(tmp_path / "run", "failing", tracking_uri=database) as tracker:
        for _ in range(2):  # told again by a search that goes on
            tracker.part("trial 0", {"temperature": 0.1}, {"recall@10": 0.25})
        raise ValueError(f"no such thing as {TOKEN}")
    client = MlflowClient(database)
    run, part = only_run(client, "failing"), only_run(client, "trial 0")
    assert run.info.status == "FAILED" and HIDDEN in run.data.tags["error"]
    assert part.data.tags["mlflow.parentRunId"] == run.info.run_id and part.info.status == "FINISHED"
    assert part.data.params["temperature"] == "0.1" and steps(client, part, "recall_at_10") == [(0, 0.25)]


def test_a_journal_that_was_cut_off_goes_on(tmp_path, database):
    folder = tmp_path / "journal"
    journal = Journal(folder)
    journal.begin(name="cut", experiment="cut", time=1000)
    journal.add_metrics({"loss": 3.0}, 1, 1000)
    with open(folder / "journal.jsonl", "a") as file:
        file.write('{"kind": "metr')  # killed while writing
    assert deliver(Journal(folder), MlflowStore(database)) == 2
    again = Journal(folder)
    assert again.pending() == []
    again.begin(name="another", experiment="another", time=2000)
    again.add_metrics({"loss": 2.5}, 1, 2000)  # the step was run again
    again.add_metrics({"loss": 2.0}, 2, 2000)
    assert deliver(again, MlflowStore(database)) == 1
    client = MlflowClient(database)
    assert steps(client, only_run(client, "cut", "cut"), "loss") == [(1, 3.0), (2, 2.0)]


def test_entries_that_arrive_twice_are_stored_once(tmp_path, database):
    journal = Journal(tmp_path)
    journal.begin(name="twice", experiment="twice", time=1000)
    journal.add("params", values={"a": "1"})
    for step in range(5):
        journal.add_metrics({"loss": 1 / (step + 1)}, step, 1000 + step)
    journal.add("end", status="FINISHED", time=3000)
    for _ in range(2):  # an answer that is lost looks like this
        MlflowStore(database).apply(journal.entries)
    client = MlflowClient(database)
    assert [step for step, _ in steps(client, only_run(client, "twice", "twice"), "loss")] == list(range(5))


def test_a_store_that_does_not_answer_is_one_clear_line(tmp_path, capsys):
    journal = Journal(tmp_path / "tracking")
    journal.begin(name="x", experiment="x", time=1)
    assert main(["track", str(tmp_path), "--tracking_uri", "http://127.0.0.1:9"]) == 1
    assert "which are kept" in capsys.readouterr().err
    assert len(Journal(tmp_path / "tracking").pending()) == 1
    assert main(["track", str(tmp_path / "tracking")]) == 1
    assert "no run with --report_to mlflow" in capsys.readouterr().err


@pytest.mark.integration
def test_a_server_that_is_killed_and_comes_back_misses_nothing(tmp_path, server, capsys):
    slowest = 0.0
    with Tracker(tmp_path / "run", "killed", tracking_uri=server.uri) as tracker:
        for step in range(240):
            if step == 60:
                server.kill()
            if step == 160:
                server.start()
            before = time.perf_counter()
            tracker.metrics({"loss": 1 / (step + 1), "speed": step}, step)
            slowest = max(slowest, time.perf_counter() - before)
            time.sleep(0.02)
    if tracker.left:  # the last tries may lie far apart
        assert main(["track", str(tmp_path / "run"), "--tracking_uri", server.uri]) == 0
    client = MlflowClient(server.uri)
    run = only_run(client, "killed")
    assert steps(client, run, "speed") == [(step, float(step)) for step in range(240)]
    assert run.info.status == "FINISHED" and slowest < 0.2  # seconds; the server alone takes longer to start


@pytest.mark.integration
def test_a_run_that_ends_without_its_server_says_what_to_do(tmp_path, server, monkeypatch):
    monkeypatch.setattr("hf_clip_domain.ops.tracking.sender.FIRST_WAIT", 0.2)
    tracker = Tracker(tmp_path / "run", "away", tracking_uri="http://127.0.0.1:9")
    with tracker:
        tracker.metrics({"loss": 1.0}, 1)
        tracker._sender.close(1.0)
    assert tracker.left == 3
    assert main(["track", str(tmp_path / "run"), "--tracking_uri", server.uri]) == 0
    client = MlflowClient(server.uri)
    assert steps(client, only_run(client, "away"), "loss") == [(1, 1.0)]
