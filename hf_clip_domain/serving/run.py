"""The HTTP server around the application: SIGTERM lets everything that was accepted be answered."""

from __future__ import annotations

import asyncio
import logging
import signal
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from hf_clip_domain.serving.service import Service
from hf_clip_domain.serving.settings import Settings

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn, with a time between the signal and the end.

    In it `/readyz` says 503, so that a load balancer turns elsewhere, while requests are still taken and every answer
    asks its client to close the connection. Then nothing new is accepted, and what was is finished.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. A second SIGINT: stop at once."""
        if self.service.draining:
            self.force_exit = self.force_exit or sig == signal.SIGINT
            self.should_exit = True
            return
        self.service.draining = True
        log.info("draining", extra={"signal": signal.Signals(sig).name})
        asyncio.get_running_loop().call_later(self.service.settings.drain_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def run(app: FastAPI, settings: Settings) -> None:
    """Serve until a signal."""
    service: Service = app.state.service
    if settings.threads:
        torch.set_num_threads(settings.threads)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,
        # Longer than any request may take: none is cut off.
        timeout_graceful_shutdown=int(settings.timeout) + 5,
    )
    Server(config, service).run()
