"""The configurations of the towers: what `config.json` says of a saved model."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig, PreTrainedConfig

# EfficientNet-Lite0: (blocks, kernel, stride of the first block, expansion, channels) of each stage.
_LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLiteConfig(PreTrainedConfig):
    """A picture tower of inverted residual blocks; the defaults are EfficientNet-Lite0's.

    Fields:
        image_size: side in pixels of the square the processor makes; the tower itself takes any.
        stem_channels: channels of the first convolution.
        stages: (blocks, kernel, stride of the first block, expansion, channels) of each stage.
        hidden_size: channels of the last convolution.
        pooled_stages: positions of the stages whose means join the last convolution's in a picture's features: middle
            layers tell textures and layouts that the last one, trained to name objects, has given up.
    """

    model_type = "efficientnet_lite"
    base_config_key = "vision_config"

    num_channels: int = 3
    image_size: int = 224
    stem_channels: int = 32
    stages: Any = _LITE0_STAGES
    hidden_size: int = 1280
    pooled_stages: Any = (4, 5, 6)

    @property
    def feature_size(self) -> int:
        """Width of a picture's features."""
        return self.hidden_size + sum(self.stages[stage][-1] for stage in self.pooled_stages)


class TowersConfig(PreTrainedConfig):
    """A dual encoder of a convolutional picture tower and a BERT, each with a head into the shared space.

    Fields:
        projection_dim: dimensions of the shared space.
        pooled_layers: layers of the text tower (0 for its embeddings) whose means over the tokens are a text's features:
            the last layers tell what a text is about, earlier ones its very words.
        head_dropout: share of the features that the heads leave out at random in training.
        logit_scale_init_value: logarithm of the first multiplier of the similarities.
    """

    model_type = "clip_domain_towers"
    sub_configs_defaults = {"text_config": BertConfig, "vision_config": EfficientNetLiteConfig}

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 256
    pooled_layers: Any = (4, 5, 6)
    head_dropout: float = 0.0
    logit_scale_init_value: float = 2.6592

    @property
    def text_feature_size(self) -> int:
        """Width of a text's features."""
        return self.text_config.hidden_size * len(self.pooled_layers)
