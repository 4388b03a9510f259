"""What a server counts: for Prometheus, and over the last minute for the dashboard."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

import numpy as np

from hf_clip_domain._optional import require

_WINDOW = 60.0  # seconds of the dashboard's figures
_KEPT = 20_000  # requests of them, at most
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFIX = "hf_clip_domain"


class Metrics:
    """Counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        prometheus = require("prometheus_client", extra="serve")
        self.registry = prometheus.CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = prometheus.Counter(
            f"{PREFIX}_requests", "Requests answered, by endpoint and status.", ["endpoint", "status"], **own
        )
        self.seconds = prometheus.Histogram(
            f"{PREFIX}_request_seconds", "Time of a request.", ["endpoint"], buckets=_SECONDS, **own
        )
        self.rows = prometheus.Histogram(
            f"{PREFIX}_batch_rows", "Texts or pictures of a forward pass.", ["kind"], buckets=_ROWS, **own
        )
        self.forward = prometheus.Histogram(
            f"{PREFIX}_batch_seconds", "Time of a forward pass.", ["kind"], buckets=_SECONDS, **own
        )
        self.refused = prometheus.Counter(
            f"{PREFIX}_refused", "Requests refused to protect the server, by reason.", ["reason"], **own
        )
        self.reloads = prometheus.Counter(f"{PREFIX}_reloads", "Models loaded to replace another.", ["outcome"], **own)
        self.started = time.time()
        self._answered: deque[tuple[float, str, float]] = deque(maxlen=_KEPT)  # when, endpoint, seconds
        self._batches: deque[tuple[float, str, int]] = deque(maxlen=_KEPT)

    def gauge(self, name: str, words: str, read: Any, **labels: str) -> None:
        """A figure that is looked up when asked for."""
        prometheus = require("prometheus_client", extra="serve")
        gauge = prometheus.Gauge(f"{PREFIX}_{name}", words, list(labels), registry=self.registry)
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def gauges(self, name: str, words: str, label: str, reads: dict[str, Any]) -> None:
        """Such figures by one label."""
        prometheus = require("prometheus_client", extra="serve")
        gauge = prometheus.Gauge(f"{PREFIX}_{name}", words, [label], registry=self.registry)
        for value, read in reads.items():
            gauge.labels(value).set_function(read)

    def watch_request(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(endpoint, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)
        self._answered.append((time.monotonic(), endpoint, seconds))

    def watch_batch(self, kind: str, rows: int, seconds: float) -> None:
        """A batch ran; called in the engine's thread."""
        self.rows.labels(kind).observe(rows)
        self.forward.labels(kind).observe(seconds)
        self._batches.append((time.monotonic(), kind, rows))

    def text(self) -> bytes:
        """In Prometheus' format."""
        return require("prometheus_client", extra="serve").generate_latest(self.registry)

    def recent(self) -> dict[str, Any]:
        """Requests a second, latencies in milliseconds and batch sizes of the last minute."""
        now = time.monotonic()
        span = min(_WINDOW, max(1.0, time.time() - self.started))
        answered = [(endpoint, seconds) for when, endpoint, seconds in self._answered.copy() if when > now - span]
        batches = [(kind, rows) for when, kind, rows in self._batches.copy() if when > now - span]
        return {
            "requests_per_second": len(answered) / span,
            "latency_ms": {
                endpoint: _percentiles([1000 * seconds for name, seconds in answered if name == endpoint])
                for endpoint in sorted({name for name, _ in answered})
            },
            "batch_size": {
                kind: {
                    "mean": float(np.mean([rows for name, rows in batches if name == kind])),
                    "largest": max(rows for name, rows in batches if name == kind),
                    "batches": count,
                }
                for kind, count in Counter(name for name, _ in batches).items()
            },
        }


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{level}": float(np.percentile(values, level)) for level in (50, 90, 99)}
