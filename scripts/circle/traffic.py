"""What the plant asks the server: one client that never pauses, whose pictures come from another domain one day."""

from __future__ import annotations

import itertools
import random
import threading
import time

from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.serving import Client
from hf_clip_domain.serving.client.retries import Retries

_PAUSE = 0.1  # seconds; of some ten requests a second the server's statistics take every one


class Traffic:
    """Pairs to score, one a request and each once, then their pictures again and again; every request is tried once.

    A picture that is asked for again counts once with the monitor, a text does not: traffic of a few captions is not the
    traffic of many.

    Attributes:
        answered, failed: requests so far.
    """

    def __init__(self, port: int, domain: str, rows: int) -> None:
        self.client = Client(f"http://127.0.0.1:{port}", retries=Retries(attempts=1))
        self.rows, self.answered, self.failed = rows, 0, 0
        self._over, self._thread = threading.Event(), threading.Thread(target=self._ask, daemon=True)
        self.turn_to(domain)

    def turn_to(self, domain: str) -> None:
        """Ask about this domain from now on, with samples that no dataset holds."""
        rows, draw = load_samples(domain, train=0, validation=0, test=self.rows, seed=1)["test"], random.Random(0)
        pairs = [(row["image"]["bytes"], draw.choice(row["text"])) for row in rows]
        again = itertools.cycle([(picture, None) for picture, _ in pairs])
        self._asked = itertools.chain(pairs, again)

    def wait_for(self, requests: int) -> None:
        """Until so many more were answered."""
        goal = self.answered + requests
        while self.answered < goal and self._thread.is_alive():
            time.sleep(0.1)

    def wait_for_version(self, version: str, patience: float) -> None:
        """Until the server has that version of its model.

        Raises:
            SystemExit: it has not, in time.
        """
        end = time.monotonic() + patience
        with Client(self.client.address) as asking:
            while str(asking.ready().model["version"]) != version:
                if time.monotonic() > end:
                    raise SystemExit(f"the server does not take version {version}: {asking.ready().model}")
                time.sleep(0.2)

    def _ask(self) -> None:
        while not self._over.wait(_PAUSE):
            picture, text = next(self._asked)
            try:
                if text is None:
                    self.client.embed_images([picture])
                elif self.client.pairs([picture], [text])[0].score is None:
                    raise ValueError("a pair has no score")
                self.answered += 1
            except Exception as error:  # whatever it is, the request was not answered
                print(f"a request failed: {error}", flush=True)
                self.failed += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.client.close()
