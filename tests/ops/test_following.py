"""A server follows the champion of a real registry: forth after `promote`, back after `rollback`, no request failed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

from hf_clip_domain.cli.main import main
from hf_clip_domain.embedder import ClipEmbedder

pytestmark = pytest.mark.integration
TEXT = "shade 30"


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_a_server_follows_promotion_and_rollback_with_no_failed_request(server, family, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    metric = ["--metric", "text_to_image/recall@1", "--export", "none"]
    assert main(["promote", "followed", "--candidate", family["first"], *metric]) == 0
    log = tmp_path / "serve.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "hf_clip_domain.cli.main", "serve", "models:/followed@champion"]
            + ["--watch_seconds", "0.3", "--port", "0", "--cache", "0"],
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def address():
        assert process.poll() is None, log.read_text()[-3000:]
        return re.search(r"running on (http://[\d.:]+)", log.read_text())

    answers, going = [], True  # (status, embedding)
    try:
        with httpx.Client(base_url=wait_for(address)[1], timeout=60) as client:

            def ask():
                while going:
                    try:
                        answer = client.post("/v1/embeddings", json={"input": TEXT})
                        answers.append((answer.status_code, np.array(answer.json()["data"][0]["embedding"])))
                    except Exception as error:  # a request that failed without an answer
                        answers.append((repr(error), None))
                    time.sleep(0.01)

            offline = {name: ClipEmbedder.from_pretrained(family[name]) for name in ("first", "second")}
            expected = {name: embedder.embed_texts([TEXT])[0].numpy() for name, embedder in offline.items()}

            def serves(name):
                return answers and answers[-1][1] is not None and np.abs(answers[-1][1] - expected[name]).max() < 1e-4

            asker = threading.Thread(target=ask)
            asker.start()
            try:
                wait_for(lambda: serves("first"))
                assert main(["promote", "followed", "--candidate", family["second"], *metric]) == 0
                wait_for(lambda: serves("second"))
                assert main(["promote", "followed", "--candidate", family["forgetful"], *metric]) == 3
                assert main(["rollback", "followed"]) == 0
                wait_for(lambda: serves("first"))
            finally:
                going = False
                asker.join()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert {status for status, _ in answers} == {200} and len(answers) > 50
    for _, embedding in answers:  # each wholly of one version
        assert min(np.abs(embedding - one).max() for one in expected.values()) < 1e-4
