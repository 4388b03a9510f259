"""The real server: a signal ends it without an answer lost, a kill costs nothing that was kept."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

pytestmark = pytest.mark.integration


class Running:
    def __init__(self, process):
        self.process, self.lines, self.address = process, [], None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on (http://[\d.:]+)", line):
                self.address = found[1]

    def wait_ready(self):
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            if self.address is not None:
                return httpx.Client(base_url=self.address, timeout=60)
            time.sleep(0.05)
        raise AssertionError("".join(self.lines))

    def end(self, sig):
        self.process.send_signal(sig)
        code = self.process.wait(60)
        self.reader.join(10)
        return code

    def logged(self):
        """Status by request id."""
        entries = [json.loads(line) for line in self.lines]
        return {entry["request_id"]: entry["status"] for entry in entries if entry["message"] == "request"}


@contextmanager
def start(*arguments):
    command = [sys.executable, "-m", "hf_clip_domain.cli.main", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()


def test_sigterm_under_load_answers_every_accepted_request(folder):
    answered, broken, refused = {}, [], []

    def load(address, number):
        with httpx.Client(base_url=address, timeout=60) as client:
            for count in range(1_000_000):
                name = f"client-{number}-{count}"
                try:
                    text = "a b c d e f"[: 1 + count % 11] + " a" * number
                    answer = client.post("/v1/embeddings", json={"input": text}, headers={"x-request-id": name})
                    answered[name] = answer.status_code
                except httpx.ConnectError:
                    refused.append(name)
                    return
                except httpx.TransportError:  # hung up on before it was read: as with any server, send it again
                    broken.append(name)
                    return

    with start(folder, "--drain_seconds", "0.5", "--cache", "0") as server:
        server.wait_ready().close()
        threads = [threading.Thread(target=load, args=(server.address, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        before = len(answered)
        assert server.end(signal.SIGTERM) == 0
        for thread in threads:
            thread.join(60)
        logged = server.logged()
        assert len(answered) > before > 10 and len(refused) + len(broken) == 8
        assert set(answered.values()) == {200}
        assert not set(logged) & {*broken, *refused}  # what the server took, it answered
        assert {name: status for name, status in logged.items() if name.startswith("client")} == answered
        entry = next(json.loads(line) for line in server.lines if '"draining"' in line)
        assert entry["signal"] == "SIGTERM"


def hang_up(client):
    """Send much, leave at once, and see the queue emptied."""
    many = {"input": [f"{number:b}".replace("0", "b ").replace("1", "c ") for number in range(4096, 4351)]}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json=many, timeout=0.02, headers={"x-request-id": "gone"})
    end = time.monotonic() + 20
    while client.get("/stats").json()["queue"]["text"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_kill_leaves_the_disk_cache_whole_and_a_restart_uses_it(folder, tmp_path):
    file, texts = tmp_path / "rows.sqlite", [f"{a} {b}" for a in "abcdefgh" for b in "abcdefgh"]
    options = (folder, "--disk_cache", str(file))
    with start(*options) as server, server.wait_ready() as client:
        first = client.post("/v1/embeddings", json={"input": texts}).json()["data"]
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as reader:
                if reader.execute("SELECT COUNT(*) FROM embeddings").fetchone()[0] == len(texts):
                    break
            time.sleep(0.05)
        client.post("/v1/embeddings", json={"input": [f"{text} z" for text in texts]})  # and die while it is written
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    with start(*options) as server, server.wait_ready() as client:
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/embeddings", json={"input": texts}).json()["data"] == first
        cache = client.get("/stats").json()["cache"]
        assert cache["hits"] == len(texts) and cache["misses"] == 0
        hang_up(client)
        assert server.end(signal.SIGTERM) == 0
        assert server.logged()["gone"] == 499
    with sqlite3.connect(file) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
