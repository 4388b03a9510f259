"""A run's folder as MLflow serves it: `mlflow models serve`, `mlflow.pyfunc.load_model`, batch jobs.

This file goes into the registered model as it is (a model from code), and imports the installed package.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from hf_clip_domain.device import find_device
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError

TASKS = ("embeddings", "similarity", "classify")


class ClipPyfunc(mlflow.pyfunc.PythonModel):
    """Rows with `image` (base64 of the file) and/or `text` in; embeddings, similarities or class probabilities out."""

    def load_context(self, context) -> None:
        self.embedder = ClipEmbedder.from_pretrained(context.artifacts["folder"], device=find_device())

    def predict(self, context, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row of the answer for each row.

        Args:
            model_input: columns `image` and/or `text`; every row has a value in each column that is there.
            params: `task`: `embeddings` (columns `image_embeds`, `text_embeds`: lists of d floats), `similarity`
                (column `similarity`: of the row's picture with its text) or `classify` (columns `label`,
                `probability`, `probabilities` of the row's picture). `labels`: the classes; by default the domain's.

        Raises:
            ClipDomainError: an unknown task, a missing column, or a picture that cannot be read.
        """
        params = params or {}
        task, labels = params.get("task", TASKS[0]), list(params.get("labels", ()))
        if task == "classify":
            return self._classified(_images(model_input, needed=True), labels)
        if task not in TASKS:
            raise ClipDomainError(f"task {task!r}: expected one of {', '.join(TASKS)}.")
        both = task == "similarity"
        images, texts = _images(model_input, needed=both), _texts(model_input, needed=both)
        if images is None and texts is None:
            raise ClipDomainError(f"expected a column image or text, found {', '.join(map(str, model_input.columns))}.")
        image_embeds = None if images is None else self.embedder.embed_images(images)
        text_embeds = None if texts is None else self.embedder.embed_texts(texts)
        if both:
            pairs = zip(image_embeds, text_embeds, strict=True)
            scores = [self.embedder.similarity_function(image[None], text[None]).item() for image, text in pairs]
            return pd.DataFrame({"similarity": scores})
        columns = {"image_embeds": image_embeds, "text_embeds": text_embeds}
        return pd.DataFrame({name: value.tolist() for name, value in columns.items() if value is not None})

    def _classified(self, images: list[bytes], labels: list[str]) -> pd.DataFrame:
        domain = self.embedder.domain
        labels = labels or (list(domain.classes) if domain is not None else [])
        if not labels:
            raise ClipDomainError("task classify: this model's domain has no classes of its own: give params labels.")
        probabilities = np.asarray(self.embedder.classify(images, labels))  # (n, classes)
        best = probabilities.argmax(1)
        return pd.DataFrame(
            {
                "label": [labels[index] for index in best],
                "probability": probabilities[np.arange(len(best)), best].tolist(),
                "probabilities": probabilities.tolist(),
            }
        )


def _column(rows: pd.DataFrame, name: str, needed: bool) -> list[str] | None:
    if name in rows.columns and not rows[name].isna().all():
        return rows[name].tolist()
    if needed:
        raise ClipDomainError(f"expected a column {name}, found {', '.join(map(str, rows.columns))}.")
    return None


def _texts(rows: pd.DataFrame, needed: bool) -> list[str] | None:
    return _column(rows, "text", needed)


def _images(rows: pd.DataFrame, needed: bool) -> list[bytes] | None:
    column = _column(rows, "image", needed)
    if column is None:
        return None
    found = []
    for row, value in enumerate(column):
        try:
            found.append(base64.b64decode(value, validate=True))
        except (TypeError, ValueError, binascii.Error) as error:
            raise ClipDomainError(f"row {row}: image is not base64 of a picture's file.") from error
    return found


mlflow.models.set_model(ClipPyfunc())
