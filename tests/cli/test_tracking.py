"""A run of the command is known to the tracking server as it knows itself."""

import json

import pytest
from mlflow import MlflowClient


def steps(client, run, metric):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


@pytest.mark.slow
def test_a_run_is_tracked_and_resumes_as_the_same_run(tmp_path, train, monkeypatch):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # which is all it takes
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    often = ["--save_steps", "2", "--eval_steps", "2", "--logging_steps", "1"]
    assert train(out, *often, "--max_steps", "2") == 0
    assert train(out, *often, "--max_steps", "4", "--resume_from_checkpoint") == 0
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("hf-clip-domain").experiment_id])
    history = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    assert len(losses) == 4 and steps(client, run, "loss") == losses
    assert [step for step, _ in steps(client, run, "eval_text_to_image/recall_at_10")] == [2, 4]
    report = json.loads((out / "evaluation.json").read_text())
    for side in ("before", "after"):
        assert run.data.metrics[f"{side}/text_to_image/mrr"] == pytest.approx(report[side]["text_to_image/mrr"])
    assert run.data.params["training.loss"] == "info_nce" and run.data.params["training.max_steps"] == "2"
    assert run.data.tags["resumed.training.max_steps"] == "4" and run.data.tags["domain"] == "scientific"
    assert run.data.tags["version.torch"]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"evaluation.json", "recall.png", "README.md", "run.yaml", "domain.yaml", "parameters.yaml"} <= files
    assert not any(name.endswith(".safetensors") or name.startswith("tokenizer") for name in files)
