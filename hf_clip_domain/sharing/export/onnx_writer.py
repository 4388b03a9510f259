"""Both towers as ONNX files, in float32 or with 8-bit weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.dual_encoder import features, text_padding
from hf_clip_domain.models.exported.onnx_model import TEXT_FILE, VISION_FILE
from hf_clip_domain.models.positions import text_capacity

OPSET = 18
_PROTOBUF_LIMIT = 2**31 - 2**27  # a file of more, weights included, cannot be read: they go beside it


class _Tower(nn.Module):
    """One tower of a dual encoder as a function of tensors alone."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind


class _Vision(_Tower):
    def forward(self, pixel_values):
        return features(self.model.get_image_features(pixel_values=pixel_values))


class _Text(_Tower):
    def forward(self, input_ids, attention_mask):
        return features(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))


class _TextWithoutMask(_Tower):
    def forward(self, input_ids):
        return features(self.model.get_text_features(input_ids=input_ids))


def write_onnx(model: nn.Module, folder: Path) -> None:
    """Write `onnx/vision_model.onnx` and `onnx/text_model.onnx`, with any number of rows and any length of text.

    Raises:
        ClipDomainError: the model cannot be expressed in ONNX.
    """
    (folder / VISION_FILE).parent.mkdir(parents=True, exist_ok=True)
    any_size = torch.export.Dim.DYNAMIC
    side = model.config.vision_config.image_size
    pixels = torch.zeros(2, getattr(model.config.vision_config, "num_channels", 3), side, side)
    _write(_Vision(model, "vision"), {"pixel_values": pixels}, {0: any_size}, "image_embeds", folder / VISION_FILE)
    # Sizes that differ from each other and from 1, so that none is mistaken for a constant.
    ids = torch.zeros(2, min(7, text_capacity(model)), dtype=torch.int64)
    if text_padding(model) == "max_length":
        tower, inputs = _TextWithoutMask(model, "text"), {"input_ids": ids}
    else:
        tower, inputs = _Text(model, "text"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _write(tower, inputs, {0: any_size, 1: any_size}, "text_embeds", folder / TEXT_FILE)


def _write(tower: _Tower, inputs: dict[str, torch.Tensor], dynamic: dict, output: str, file: Path) -> None:
    size = sum(parameter.numel() * parameter.element_size() for parameter in tower.parameters())
    with _quiet():
        try:
            torch.onnx.export(
                tower.eval(),
                tuple(inputs.values()),
                str(file),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes={name: dict(dynamic) for name in inputs},
                external_data=size > _PROTOBUF_LIMIT,
            )
        except Exception as error:  # tracing runs the model's own code and may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            kind = type(tower.model).__name__
            raise ClipDomainError(f"the {tower.kind} tower of {kind} cannot be exported to ONNX: {reason}") from error


def quantize_onnx(source: Path, target: Path, kept_in_float: tuple[str, ...]) -> None:
    """Copy both files with 8-bit weights, each output channel with its own scale; activations are quantised as they
    come.

    Weights take 7 of the 8 bits: processors without VNNI add products in 16 bits, which overflow with more, so that the
    figures measured here hold there too.

    Args:
        kept_in_float: parts of modules' paths, such as `mlp.fc2`, that stay in float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in (VISION_FILE, TEXT_FILE):
        graph = onnx.load(source / name)
        kept = [node.name for node in graph.graph.node if any(part in _path(node) for part in kept_in_float)]
        del graph.graph.value_info[:]  # shapes noted for weights that are about to be transposed
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            quantize_dynamic(
                graph,
                target / name,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
                # A Gemm is taken apart before, and its product named anew.
                nodes_to_exclude=[*kept, *(f"{node}_MatMul" for node in kept)],
                use_external_data_format=graph.ByteSize() > 3 * _PROTOBUF_LIMIT,
            )


def _path(node) -> str:
    """The module of torch that a node comes from."""
    return next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress and their advice to each other's authors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
