"""Servers and load as processes, and what they take."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

SCRIPTS = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ours(model: Path, *more: str) -> list[str]:
    """The command of this package's server, to be followed by its port."""
    return [
        sys.executable,
        "-m",
        "hf_clip_domain.cli.main",
        "serve",
        str(model),
        "--log_level",
        "error",
        *more,
        "--port",
    ]


def script(name: str, *arguments: str | Path) -> list[str]:
    """The command of a server among these scripts, to be followed by its port."""
    return [sys.executable, str(SCRIPTS / "serving" / name), *map(str, arguments)]


@contextmanager
def server(
    command: Sequence[str], *after: str, ready: str = "/readyz", patience: float = 180
) -> Iterator[tuple[int, psutil.Process]]:
    """Run `command PORT after...`; gives port and process once it is ready, and ends it with SIGTERM."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS)])}
    run = subprocess.Popen([*command, str(port), *after], env=environment)
    try:
        end = time.monotonic() + patience
        while not _answers(port, ready):
            if run.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)}: the server did not start")
            time.sleep(0.1)
        yield port, psutil.Process(run.pid)
    finally:
        run.terminate()
        try:
            run.wait(30)
        except subprocess.TimeoutExpired:
            run.kill()


def load(port: int, **plan) -> dict:
    """Put load on a server, see `load.py`."""
    with loading(port, **plan) as result:
        pass
    return result


@contextmanager
def loading(port: int, **plan) -> Iterator[dict]:
    """The same, while something else is done; the result is there at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS)])}
    run = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "serving" / "load.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    result: dict = {}
    run.stdin.write(json.dumps({"port": port, **plan}))
    run.stdin.close()
    run.stdin = None  # or communicate would flush it
    yield result
    try:
        printed, _ = run.communicate(timeout=plan["seconds"] + 90)
    except subprocess.TimeoutExpired:
        run.kill()
        raise SystemExit("the load generator hangs") from None
    if run.returncode:
        raise SystemExit("the load generator failed")
    result |= json.loads(printed)


@contextmanager
def memory_of(process: psutil.Process, every: float = 0.5) -> Iterator[list[tuple[float, int]]]:
    """Resident bytes of a process by time, while something else is done."""
    found: list[tuple[float, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every) and process.is_running():
            found.append((time.monotonic(), process.memory_info().rss))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def post(port: int, path: str) -> int:
    """Status of a request without a body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"{}", method="POST")
    request.add_header("content-type", "application/json")
    try:
        return urllib.request.urlopen(request, timeout=120).status
    except urllib.error.HTTPError as error:
        return error.code


def _answers(port: int, path: str) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).status == 200
    except OSError:
        return False
