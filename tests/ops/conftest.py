"""A real MLflow tracking server on SQLite, on this machine only, and small models that differ in what they know."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from small_clip import draw_shades, make_clip, shade

from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.evaluation import EvaluationReport


class Server:
    """`mlflow server` in a folder, on one port; may be killed and started again."""

    def __init__(self, folder):
        self.folder, self.process = folder, None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts"]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_TRACKING_URI": "",
                    "PYTHONPATH": "",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that nothing here needs
                },
            )
        for _ in range(240):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return self
            except OSError:
                time.sleep(0.25)
        raise RuntimeError((self.folder / "server.log").read_text()[-3000:])

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow"))
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory):
    """Of a store and registry in a file, made once, since MLflow builds its tables first."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # artefacts are kept where the store was first opened
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_registered_models()
    return folder


@pytest.fixture(scope="module")
def store(store_folder):
    """A client of that store, which is this machine's for the commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store_folder / 'mlflow.db'}")
        patch.chdir(store_folder)
        yield MlflowClient()


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Folders as runs leave them: a small `base`; `first` knows half of the domain's test pairs and the probe's,
    `second` all of them, `forgetful` too but has mixed up the probe's captions."""
    folder = tmp_path_factory.mktemp("family")
    own = draw_shades(folder / "own", ["train"] * 12 + ["validation"] * 12 + ["test"] * 24, "shade")
    general = draw_shades(folder / "general", ["validation"] * 20 + ["test"] * 20, "tint", seed=1)
    own, general = own[24:], general[20:]
    mixed = [(picture, general[(place + 7) % 20][1]) for place, (picture, _) in enumerate(general)]
    model, processor = make_clip(length=16)
    settings = {"domain": "scientific", "dataset": str(folder / "own"), "probe_dataset": str(folder / "general")}
    settings |= {"model_name_or_path": str(folder / "base"), "precision": "fp32"}
    domain, family = load_domain("scientific"), {}
    lessons = {"base": [], "first": own[:12] + general, "second": own + general, "forgetful": own + mixed}
    for name, pairs in lessons.items():
        learn(ClipEmbedder(model, processor, domain=domain), pairs)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        domain.save(folder / name)
        report = EvaluationReport(
            {}, {"text_to_image/recall@10": 0.5, "candidates": 24.0}, domain="scientific", dataset="shades"
        )
        replace(report, base_model=str(folder / "base")).save(folder / name)
        (folder / name / "run.yaml").write_text(json.dumps(settings))
        (folder / name / "README.md").write_text("# A card\n")
        family[name] = str(folder / name)
    return family


@pytest.fixture(scope="session")
def shades():
    """The pictures of the domain's test pairs, as files' bytes."""
    colours = np.random.default_rng(0).integers(256, size=(48, 3))[24:]
    return [shade(colour) for colour in colours.tolist()]


def learn(embedder, pairs, steps=150):
    """Train the embedder's model on these pairs alone, until it knows them."""
    if not pairs:
        return
    pixels = torch.stack([embedder.pixels(0, picture) for picture, _ in pairs])
    inputs = embedder.padded(embedder.token_ids([text for _, text in pairs]))
    model = embedder.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        loss = model(pixel_values=pixels, **inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
