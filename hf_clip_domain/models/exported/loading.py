"""Any model to embed with: an exported folder by its own library, everything else by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoProcessor

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.exported.base import ExportedModel
from hf_clip_domain.models.exported.mlx_model import MlxModel
from hf_clip_domain.models.exported.onnx_model import OnnxModel
from hf_clip_domain.models.exported.record import ExportRecord, find_record
from hf_clip_domain.models.loading import load_model


def load_encoder(
    name_or_path: str | Path, *, attention_slicing: str | int = "auto", threads: int | None = None
) -> tuple[nn.Module, Any]:
    """Model and processor to embed with; what trains is loaded by `load_model`.

    Args:
        name_or_path: as for `load_model`, or an exported folder.
        attention_slicing: of a model of torch.
        threads: of an ONNX export.

    Raises:
        ClipDomainError: the model cannot be loaded, or `threads` is given for another kind of model.
    """
    record = find_record(name_or_path)
    if threads is not None and (record is None or record.format != "onnx"):
        raise ClipDomainError(f"threads is for ONNX exports, which {name_or_path} is not: see torch.set_num_threads.")
    if record is None or record.format == "safetensors":
        return load_model(name_or_path, attention_slicing=attention_slicing)
    folder = Path(name_or_path).expanduser()
    model = open_export(folder, record, threads)
    try:
        return model, AutoProcessor.from_pretrained(folder)
    except Exception as error:  # the parsers of tokenizers raise of every kind
        raise ClipDomainError(f"{folder}: the processor could not be loaded: {error}") from error


def open_export(folder: Path, record: ExportRecord, threads: int | None = None) -> ExportedModel:
    """The model of an ONNX or MLX export."""
    config = AutoConfig.from_pretrained(folder)
    return OnnxModel(folder, config, record, threads) if record.format == "onnx" else MlxModel(folder, config, record)
