"""The thread that delivers a journal while the run goes on."""

from __future__ import annotations

import os
import threading
import time

from transformers.utils import logging

from hf_clip_domain.ops.tracking.journal import Journal
from hf_clip_domain.ops.tracking.store import MlflowStore

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two tries while the server is away
PAUSE = 0.5  # seconds in which entries gather to be sent together
AT_ONCE = 500

logger = logging.get_logger(__name__)


class Sender:
    """Delivers a journal's entries in their order, as often as it takes.

    Args:
        journal: what to deliver.
        store: where to.
    """

    def __init__(self, journal: Journal, store: MlflowStore) -> None:
        # One patient loop is here; the client's own would hold a try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.journal, self.store = journal, store
        self.problem: str | None = None
        self._ending, self._deadline = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def close(self, patience: float = 20.0) -> int:
        """Deliver what is left, for `patience` seconds at most; the number of entries that still wait."""
        self._deadline = time.monotonic() + patience
        self._ending.set()
        self._thread.join(patience)
        return len(self.journal.pending())

    def _run(self) -> None:
        wait, resumed = FIRST_WAIT, False
        while True:
            ending = self._ending.is_set()
            entries = self.journal.pending()[:AT_ONCE]
            if not entries:
                if ending:
                    return
                self._ending.wait(PAUSE)
                continue
            try:
                if not resumed and self.journal.delivered:
                    self.store.apply(self.journal.entries[:1])  # finds the run that an earlier process began
                resumed = True
                self.store.apply(entries)
            except Exception as error:  # whatever a network, a proxy or a server can do must not reach the run
                self._tell(error)
                if ending and time.monotonic() + wait > self._deadline:
                    return
                (time.sleep if ending else self._ending.wait)(wait)
                wait = min(2 * wait, LONGEST_WAIT) if not self._ending.is_set() else FIRST_WAIT
                continue
            self.journal.acknowledge(len(entries))
            if self.problem is not None:
                logger.warning("The tracking server answers again; what it missed is being sent.")
            self.problem, wait = None, FIRST_WAIT

    def _tell(self, error: Exception) -> None:
        if self.problem is None:
            line = " ".join(str(error).split())[:200]
            logger.warning(f"The tracking server does not take what it is sent ({line}); it is kept and sent later.")
        self.problem = str(error)


def deliver(journal: Journal, store: MlflowStore) -> int:
    """Send at once what a journal still holds; the number of entries sent.

    Raises:
        Exception: what MLflow's client raises.
    """
    entries = journal.pending()
    if entries:
        if journal.delivered:
            store.apply(journal.entries[:1])
        store.apply(entries)
        journal.acknowledge(len(entries))
    return len(entries)
