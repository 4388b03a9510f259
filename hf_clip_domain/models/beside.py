"""What is kept beside a model's weights, in its folder or on the Hub, and says how the model is to be used."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hf_clip_domain.models.loading import find_hub_file
from hf_clip_domain.similarity import SIMILARITY_FILE, SIMILARITY_WEIGHTS, SimilarityFunction, cosine, load_similarity

CALIBRATION_FILE = "calibration.json"


def similarity_beside(name_or_path: str, model: nn.Module) -> SimilarityFunction:
    """The similarity saved with a model; the cosine where none is."""
    file = file_beside(name_or_path, model, SIMILARITY_FILE)
    if file is None:
        return cosine
    return load_similarity(file, file_beside(name_or_path, model, SIMILARITY_WEIGHTS))


def file_beside(name_or_path: str, model: nn.Module, file: str) -> Path | None:
    """A file saved next to the weights, in a folder or on the Hub."""
    for folder in (name_or_path, getattr(model, "name_or_path", "")):
        if folder and (Path(folder) / file).is_file():
            return Path(folder) / file
        if folder and Path(folder).is_dir():
            return None
    return find_hub_file(name_or_path, file)
