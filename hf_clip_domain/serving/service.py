"""What the endpoints of one application share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_clip_domain.memory import used
from hf_clip_domain.serving.drift_status import DriftStatus
from hf_clip_domain.serving.engine import Engine
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.metrics import Metrics
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.quality import PictureFacts
from hf_clip_domain.serving.recording import Recorder
from hf_clip_domain.serving.settings import Settings
from hf_clip_domain.serving.swap import Models


@dataclass
class Service:
    """One server's parts.

    Attributes:
        recorder: of statistics, where they are wanted.
        drift: the monitor's verdict, where one is to be shown.
        draining: set by SIGTERM: still answering, about to leave.
    """

    settings: Settings
    metrics: Metrics
    engine: Engine
    models: Models
    recorder: Recorder | None = None
    drift: DriftStatus | None = None
    draining: bool = False

    def model(self, asked: str | None = None) -> LoadedModel:
        """The model that a request shall keep to.

        Raises:
            RequestError: 404, it asks for another.
        """
        if asked not in (None, self.settings.name):
            raise RequestError(
                404, f"This server has the model {self.settings.name!r} alone.", code="model_not_found", param="model"
            )
        return self.models.current

    def check_count(self, field: str, count: int, most: int) -> None:
        """Refuse more items than a request may have."""
        if count > most:
            raise RequestError(
                413, f"{field} has {count:,} items; at most {most:,} are taken.", code="too_many_items", param=field
            )

    def check_texts(self, field: str, texts: Sequence[str], most: int | None = None) -> None:
        """Refuse too many texts, or one that is too long."""
        self.check_count(field, len(texts), most or self.settings.max_items)
        for place, text in enumerate(texts):
            if len(text) > self.settings.max_characters:
                raise RequestError(
                    413,
                    f"The text has {len(text):,} characters; at most {self.settings.max_characters:,} are taken.",
                    code="text_too_long",
                    param=f"{field}[{place}]",
                )

    def facts(self) -> PictureFacts | None:
        """To be filled by the engine with what statistics keep of the pictures of the request that begins now; None where
        they keep nothing of it."""
        return PictureFacts() if self.recorder is not None and self.recorder.wants() else None

    def record(self, model: LoadedModel, facts: PictureFacts | None, texts: Sequence[str] = (), **found) -> None:
        """Tell statistics of an answered request that they want; returns at once. See `Recorder.record`."""
        if self.recorder is not None and facts is not None:
            self.recorder.record(model, texts, **found, **facts.found())

    @property
    def memory_bytes(self) -> int:
        """Of the process on the model's device."""
        return used(self.models.current.device)
