"""The dual encoder: a convolutional picture tower and a BERT, each with a head into the shared space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from hf_clip_domain.models.towers.configuration import TowersConfig
from hf_clip_domain.models.towers.vision import EfficientNetLiteModel


class Head(nn.Module):
    """Standardised features to the shared space: `(n, width) -> (n, projection_dim)`.

    The features' mean and spread are constants, measured once when the head is made: the heads of both towers then
    learn at one learning rate, although the towers' features differ in scale a hundredfold.
    """

    def __init__(self, width: int, projection_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.linear = nn.Linear(width, projection_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear((features - self.mean) * self.scale)


class TowersModel(PreTrainedModel):
    """Embeds pictures and texts into one space; called, saved and loaded like a `CLIPModel`.

    Texts are the mean of their tokens' states, padding left out; pictures the mean of their places.
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
        self.visual_projection = Head(config.vision_config.feature_size, config.projection_dim)
        self.text_projection = Head(config.text_config.hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutputWithPooling:
        """Pictures `(n, 3, s, s)`; `pooler_output` holds their embeddings `(n, d)`, not normalised."""
        output = self.vision_model(pixel_values)
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object
    ) -> BaseModelOutputWithPooling:
        """Texts `(n, t)`; `pooler_output` holds their embeddings `(n, d)`, not normalised."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        states = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (n, t, width)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.text_projection(mean))

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
