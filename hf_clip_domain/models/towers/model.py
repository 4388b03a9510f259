"""The dual encoder: a convolutional picture tower and a BERT, each with a head into the shared space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from hf_clip_domain.models.towers.configuration import TowersConfig
from hf_clip_domain.models.towers.memo import FeatureMemo, may_remember
from hf_clip_domain.models.towers.vision import EfficientNetLiteModel

_MEMO = FeatureMemo()  # of all models: those that share a frozen tower share its answers


class Head(nn.Module):
    """Standardised features to the shared space: `(n, width) -> (n, projection_dim)`.

    The features' mean and spread are constants, measured once when the head is made: the heads of both towers then
    learn at one learning rate, although the towers' features differ in scale a hundredfold. While it trains, a share
    `dropout` of the features is left out at random: there are more of them than a small set has pairs.
    """

    def __init__(self, width: int, projection_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, projection_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout((features - self.mean) * self.scale))


class TowersModel(PreTrainedModel):
    """Embeds pictures and texts into one space; called, saved and loaded like a `CLIPModel`.

    A text's features are the means of its tokens' states, padding left out, after several layers; a picture's are the
    means of its places. With frozen towers on a CPU each picture and text is computed once a process (`FeatureMemo`).
    """

    config: TowersConfig
    config_class = TowersConfig
    base_model_prefix = "towers"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: TowersConfig) -> None:
        super().__init__(config)
        self.vision_model = EfficientNetLiteModel(config.vision_config)
        self.text_model = BertModel(config.text_config, add_pooling_layer=False)
        self.visual_projection = Head(config.vision_config.feature_size, config.projection_dim, config.head_dropout)
        self.text_projection = Head(config.text_feature_size, config.projection_dim, config.head_dropout)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutputWithPooling:
        """Pictures `(n, 3, s, s)`; `pooler_output` holds their embeddings `(n, d)`, not normalised."""
        return BaseModelOutputWithPooling(pooler_output=self.visual_projection(self._picture_features(pixel_values)))

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object
    ) -> BaseModelOutputWithPooling:
        """Texts `(n, t)`; `pooler_output` holds their embeddings `(n, d)`, not normalised."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return BaseModelOutputWithPooling(
            pooler_output=self.text_projection(self._text_features(input_ids, attention_mask))
        )

    def _picture_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(n, feature_size)`; a tower that gives no gradient is asked once a picture."""
        tower = self.vision_model
        if not may_remember(tower, pixels):
            return tower(pixels).pooler_output
        return _MEMO.features(tower, pixels.unbind(), lambda places: tower(pixels[places]).pooler_output)

    def _text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`(n, text_feature_size)`, likewise."""
        if not may_remember(self.text_model, input_ids):
            return self._pooled_texts(input_ids, attention_mask)
        lengths = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1)).amax(dim=1).clamp(min=1).tolist()
        words = torch.stack([input_ids, attention_mask], dim=1)  # (n, 2, t)
        rows = [row[:, :length] for row, length in zip(words, lengths, strict=True)]

        def compute(places: list[int]) -> torch.Tensor:
            longest = max(lengths[place] for place in places)
            return self._pooled_texts(input_ids[places, :longest], attention_mask[places, :longest])

        return _MEMO.features(self.text_model, rows, compute)

    def _pooled_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        mask = attention_mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
        means = [
            (output.hidden_states[layer] * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            for layer in self.config.pooled_layers
        ]
        return torch.cat(means, dim=1)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: object,
    ) -> CLIPOutput:
        """Both sides: `image_embeds (n, d)` and `text_embeds (m, d)` of length 1, and the logits between them."""
        images, texts = self.get_image_features(pixel_values), self.get_text_features(input_ids, attention_mask)
        image_embeds, text_embeds = (F.normalize(side.pooler_output, dim=-1) for side in (images, texts))
        logits_per_text = text_embeds @ image_embeds.T * self.logit_scale.exp()  # (m, n)
        return CLIPOutput(
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            vision_model_output=images,
            text_model_output=texts,
        )
