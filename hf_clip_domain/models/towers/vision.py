"""EfficientNet-Lite as a stack of plain convolutions: the batch norms are folded into them.

A batch norm with fixed statistics is an affine map of each channel, so it can be multiplied into the convolution before
it. The result has nothing that depends on the other rows of a batch, in training neither: embeddings and gradients are
the same whatever the micro-batch. It is also less work.

Source: Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946; the
Lite variants leave out squeeze-and-excitation and use ReLU6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_clip_domain.models.towers.configuration import EfficientNetLiteConfig


class SameConv2d(nn.Conv2d):
    """A convolution whose output has `ceil(side / stride)` places, padded as TensorFlow does: the odd zero comes last.

    So the pretrained weights see what they were trained on, at every size of picture.
    """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        (top, bottom), (left, right) = (
            _padding(side, kernel, stride)
            for side, kernel, stride in zip(pixels.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        if top == bottom and left == right:
            padding = (top, left)
        else:
            pixels, padding = F.pad(pixels, (left, right, top, bottom)), (0, 0)
        return F.conv2d(pixels, self.weight, self.bias, self.stride, padding, groups=self.groups)


def _padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    whole = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return whole // 2, whole - whole // 2


class InvertedResidual(GradientCheckpointingLayer):
    """Widen by 1 x 1, filter each channel, narrow by 1 x 1; added to its input where the shapes agree."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = SameConv2d(channels, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv2d(wide, out_channels, 1)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden if self.expand is None else F.relu6(self.expand(hidden))
        narrow = self.project(F.relu6(self.depthwise(wide)))
        return hidden + narrow if self.residual else narrow


class EfficientNetLiteModel(PreTrainedModel):
    """Pictures `(n, 3, s, s)` of any size to maps `(n, hidden_size, s / 32, s / 32)` and features `(n, feature_size)`.

    The features are means over the places of the last map and of the stages that the configuration names.
    """

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["InvertedResidual"]
    # With the channels innermost the CPU's convolutions are faster; they hand that order on (scripts/bench_towers.py).
    memory_format = torch.channels_last

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv2d(config.num_channels, config.stem_channels, 3, 2)
        blocks, ends, channels = [], [], config.stem_channels
        for repeats, kernel, stride, expansion, out_channels in config.stages:
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, kernel, step, expansion))
                channels = out_channels
            ends.append(len(blocks) - 1)
        self._pooled_blocks = {ends[stage] for stage in config.pooled_stages}
        self.blocks = nn.ModuleList(blocks)
        self.top = SameConv2d(channels, config.hidden_size, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):  # small normal weights would leave nothing of a picture after twenty layers
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutputWithPooling:
        hidden = pixel_values.contiguous(memory_format=self.memory_format)
        hidden = F.relu6(self.stem(hidden))
        pooled = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            if index in self._pooled_blocks:
                pooled.append(hidden.mean(dim=(2, 3)))
        hidden = F.relu6(self.top(hidden))  # (n, hidden_size, h, w)
        features = torch.cat([hidden.mean(dim=(2, 3)), *pooled], dim=1)  # (n, feature_size)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=features)
