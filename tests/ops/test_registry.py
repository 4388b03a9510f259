"""A registered model is the run's model: once, servable by MLflow alone, and known by its tags."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from hf_clip_domain.cli.assembly import load_parts
from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.ops.registry import find, register
from hf_clip_domain.ops.tracking import Tracker
from hf_clip_domain.serving.registry import resolve

TEXTS = ["shade 30", "a much longer text than the model reads"]


@pytest.fixture(scope="module")
def version(store, family):
    found, new = register(family["first"], "shades")
    assert new
    return found


def rows(pictures, texts=TEXTS):
    return pd.DataFrame({"image": [base64.b64encode(picture).decode() for picture in pictures], "text": texts})


def test_the_pyfunc_model_gives_what_the_embedder_gives(version, family, shades):
    served, offline = mlflow.pyfunc.load_model(version.uri), ClipEmbedder.from_pretrained(family["first"])
    found = served.predict(rows(shades[:2]))
    images, texts = offline.embed_images(shades[:2]), offline.embed_texts(TEXTS)
    np.testing.assert_allclose(np.array(found["image_embeds"].tolist()), images, atol=1e-4)
    np.testing.assert_allclose(np.array(found["text_embeds"].tolist()), texts, atol=1e-4)
    alone = served.predict(pd.DataFrame({"text": TEXTS}))
    assert list(alone.columns) == ["text_embeds"] and np.allclose(np.array(alone["text_embeds"].tolist()), texts)
    scores = served.predict(rows(shades[:2]), params={"task": "similarity"})["similarity"]
    np.testing.assert_allclose(scores, offline.similarity(images, texts).diagonal(), atol=1e-4)
    labels = ["shade 24", "shade 25", "shade 26"]
    classes = served.predict(rows(shades[:2])[["image"]], params={"task": "classify", "labels": labels})
    expected = offline.classify(shades[:2], labels)
    np.testing.assert_allclose(np.array(classes["probabilities"].tolist()), expected, atol=1e-4)
    assert classes["label"].tolist() == [labels[index] for index in expected.argmax(1)]
    own = served.predict(rows(shades[:2])[["image"]], params={"task": "classify"})  # the domain's classes
    assert set(own["label"]) <= set(offline.domain.classes) and len(own["probabilities"][0]) > 3


@pytest.mark.parametrize(
    ("row", "params", "told"),
    [
        ({"image": ["?"]}, {}, "row 0: image is not base64"),
        ({"text": ["a"]}, {"task": "similarity"}, "expected a column image"),
        ({"text": ["a"]}, {"task": "caption"}, "expected one of embeddings, similarity, classify"),
        ({"image": [base64.b64encode(b"no picture").decode()]}, {}, "image 0"),
    ],
)
def test_what_cannot_be_answered_says_why(version, row, params, told):
    with pytest.raises(Exception, match=told):
        mlflow.pyfunc.load_model(version.uri).predict(pd.DataFrame(row), params=params)


def test_a_version_is_told_by_its_tags_and_files(version, family):
    tags = version.tags
    assert tags["domain"] == "scientific" and tags["base_model"] == family["base"] and tags["similarity"] == "cosine"
    assert (tags["resolution"], tags["text_length"], tags["modalities"]) == ("32", "16", "image,text")
    assert [name for name in tags if "metric" in name] == ["metric.text_to_image/recall_at_10"]
    assert tags["metric.text_to_image/recall_at_10"] == "0.5" and len(tags["weights_sha256"]) == 64
    folder = Path(resolve(version.uri).path)
    offline = ClipEmbedder.from_pretrained(folder)
    np.testing.assert_array_equal(
        offline.embed_texts(TEXTS), ClipEmbedder.from_pretrained(family["first"]).embed_texts(TEXTS)
    )
    info = mlflow.models.get_model_info(version.uri)
    assert info.signature.inputs.input_names() == ["image", "text"] and info.saved_input_example_info
    requirements = (folder.parents[1] / "requirements.txt").read_text()
    assert "hf-clip-domain==" in requirements and "torch==" in requirements and "+" not in requirements


def test_a_model_is_registered_once_and_by_the_run_that_made_it(store, version, family, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(family["first"], copy)
    (copy / "README.md").write_text("# Another card\n")
    (copy / "checkpoint-3").mkdir()
    (copy / "checkpoint-3" / "optimizer.pt").write_bytes(b"0" * 10_000)
    assert main(["register", str(copy), "--name", "shades", "--alias", "newest"]) == 0
    assert "Registered before" in capsys.readouterr().out
    assert find("shades", alias="newest").number == version.number and find("shades", number="2") is None
    with Tracker(copy, "the run") as tracker:
        tracker.metrics({"loss": 1.0}, 1)
    found, new = register(copy, "of a tracked run")
    assert new and mlflow.MlflowClient().get_run(found.run_id).info.run_name == "the run"
    assert not list(Path(resolve(found.uri).path).rglob("*.pt"))


def test_a_server_keeps_the_files_of_two_versions(version, family):
    for folder in ("second", "forgetful"):
        register(family[folder], "shades")
    folders = [Path(resolve(f"models:/shades/{number}").path) for number in (1, 2, 3)]
    assert [folder.is_dir() for folder in folders] == [False, True, True]


def test_what_is_no_whole_model_is_refused(store, tmp_path, family, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (adapter / name).write_text("{}")
    for arguments, told in (
        ([str(adapter), "--name", "shades"], "--save_adapter merged"),
        ([str(tmp_path), "--name", "shades"], "no model to publish"),
        ([family["first"], "--name", "a/b"], "expected the name"),
        ([family["first"], "--name", "shades", "--alias", "champion"], "hf-clip-domain promote shades"),
    ):
        assert main(["register", *arguments]) == 1
        assert told in capsys.readouterr().err


def test_without_mlflow_the_extra_is_named(monkeypatch, family, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for arguments in (
        ["register", family["first"], "--name", "shades"],
        ["promote", "shades", "--candidate", family["first"]],
        ["rollback", "shades"],
    ):
        assert main(arguments) == 1
        assert 'pip install "hf-clip-domain[mlflow]"' in capsys.readouterr().err


def test_a_registry_that_is_away_is_one_clear_line(monkeypatch, family, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["rollback", "shades"]) == 1
    assert "the model registry says" in capsys.readouterr().err


@pytest.mark.integration
def test_mlflow_itself_serves_a_registered_model(server, family, shades, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    version, _ = register(family["first"], "served")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", version.uri, "--env-manager", "local"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            # It starts `uvicorn` by name.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=tmp_path,
        )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        body = {"dataframe_split": rows(shades[:2]).to_dict("split"), "params": {"task": "similarity"}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = [row["similarity"] for row in json.load(answer)["predictions"]]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    offline = ClipEmbedder.from_pretrained(family["first"])
    np.testing.assert_allclose(found, offline.similarity(shades[:2], TEXTS).diagonal(), atol=1e-4)


def test_a_registered_model_is_a_base_to_train_from_pinned_to_the_version_it_meant(version, store, family, tmp_path):
    store.set_registered_model_alias("shades", "base", version.number)
    command = ["--model_name_or_path", "models:/shades@base", "--output_dir", str(tmp_path), "--domain", "scientific"]
    options = parse_options([*command, "--smoke"])
    assert options.model.model_name_or_path == version.uri and version.uri in options.to_yaml()
    model, _, _ = load_parts(options, lambda _: None)
    expected = load_model(family["first"])[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ClipDomainError, match="models:/nothing@base"):
        parse_options([*command, "--model_name_or_path", "models:/nothing@base"])
