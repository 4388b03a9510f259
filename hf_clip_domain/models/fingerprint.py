"""Which weights a model has, as a short name: statistics of one model mean nothing to another."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hexadecimal digits) of the names, types, shapes and values of a model's weights.

    The same on every device and after saving and loading; different after any training step. An export's weights are in
    its `weight_files`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for file in getattr(model, "weight_files", ()):
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
