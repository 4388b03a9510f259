"""`mlflow server` on SQLite, on this machine alone; may be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from serving.processes import free_port


class TrackingServer:
    """A server on a port of its own, with everything it keeps in a folder.

    Args:
        folder: goes on where an earlier server of the folder was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._run: subprocess.Popen | None = None

    def start(self) -> None:
        """Begin, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
        with open(self.folder / "mlflow.log", "ab") as log:
            self._run = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        for _ in range(400):
            if self._run.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.25)
        raise SystemExit(f"MLflow did not start: {(self.folder / 'mlflow.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """With SIGKILL, it and its workers."""
        if self._run is not None:
            os.killpg(self._run.pid, signal.SIGKILL)
            self._run.wait()
            self._run = None

    def __enter__(self) -> TrackingServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
