"""Sends short JSON messages to an HTTP address or a program, without ever holding up or stopping the sender."""

from __future__ import annotations

import json
import logging
import os
import queue
import shlex
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from hf_clip_domain.errors import ClipDomainError

logger = logging.getLogger(__name__)

ENVIRONMENT = "HF_CLIP_DOMAIN_EVENT"
SECONDS = 5.0  # for one message
_COMMAND = "command:"


class Notifier:
    """Messages are sent one after another by a thread of its own; the first failure is logged, and later ones are not.

    Args:
        target: `http://...` or `https://...`, which gets a POST of JSON; or `command: PROGRAM ARGUMENTS`, which gets the
            JSON on standard input and in the environment as `HF_CLIP_DOMAIN_EVENT`. No shell reads the command; who
            needs one writes `command: sh -c '...'`.

    Raises:
        ClipDomainError: a target that is neither, or a program that is not there.
    """

    def __init__(self, target: str) -> None:
        self._deliver = _delivery(target)
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._failed = False

    def send(self, message: dict[str, Any]) -> None:
        """Returns at once."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)
            self._thread.start()
        self._messages.put(message)

    def close(self, seconds: float = 2 * SECONDS) -> None:
        """Wait for what is still to be sent, but not longer than `seconds`."""
        if self._thread is not None:
            self._messages.put(None)
            self._thread.join(seconds)

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._deliver(json.dumps(message))
            except Exception as error:  # of whatever kind: a run does not end because nobody hears of it
                if not self._failed:
                    logger.warning(f"Notification failed, as later ones may: {describe(error)}")
                self._failed = True


def check_target(target: str) -> None:
    """Raises what `Notifier(target)` would."""
    _delivery(target)


def describe(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _delivery(target: str) -> Callable[[str], None]:
    if target.startswith(_COMMAND):
        try:
            command = shlex.split(target.removeprefix(_COMMAND))
        except ValueError as error:
            raise ClipDomainError(f"--notify 'command: ...' cannot be read: {error}.") from error
        if not command or shutil.which(command[0]) is None:
            program = command[0] if command else ""
            raise ClipDomainError(f"--notify: no program {program!r} is found; give its full path after 'command:'.")
        return lambda text: _run(command, text)
    try:
        address = urlsplit(target)
        usable = address.scheme in ("http", "https") and address.hostname and (address.port or True)
    except ValueError:
        usable = False
    if not usable:  # not repeated, since it may hold a secret
        raise ClipDomainError("--notify: expected http://..., https://..., or 'command: PROGRAM ARGUMENTS'.")
    return lambda text: _post(target, text)


def _post(address: str, text: str) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "hf-clip-domain"}
    request = urllib.request.Request(address, text.encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise RuntimeError(f"{urlsplit(address).hostname} answered {error.code} {error.reason}") from None


def _run(command: list[str], text: str) -> None:
    environment = {**os.environ, ENVIRONMENT: text}
    done = subprocess.run(command, input=text.encode(), env=environment, timeout=SECONDS, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{command[0]} ended with {done.returncode}" + (f": {said[-1]}" if said else ""))
