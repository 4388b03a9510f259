"""A base without the Hub: two pretrained towers from the Python package registry, with heads of ours between them.

Importing this registers the classes, so that `AutoModel.from_pretrained(folder)` knows a saved model.
"""

from transformers import AutoConfig, AutoModel

from hf_clip_domain.models.towers.configuration import EfficientNetLiteConfig, TowersConfig
from hf_clip_domain.models.towers.model import TowersModel
from hf_clip_domain.models.towers.vision import EfficientNetLiteModel

__all__ = ["EfficientNetLiteConfig", "EfficientNetLiteModel", "TowersConfig", "TowersModel"]

for _config, _model in ((EfficientNetLiteConfig, EfficientNetLiteModel), (TowersConfig, TowersModel)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
