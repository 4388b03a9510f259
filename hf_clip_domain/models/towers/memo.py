"""What a tower said of a picture or a text it has met, so that it is asked once.

A tower that gives no gradient answers the same question in every epoch, at every evaluation, and for every merged model
whose tower nobody changed. Its answers, a few kilobytes each, are kept by the content of weights and row.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

CAPACITY_BYTES = 256 * 2**20
_AT_ONCE = 32  # rows a tower is asked for at once: bounds memory whatever the batch


class FeatureMemo:
    """Features by tower and row; the ones unused for longest go first.

    Args:
        capacity_bytes: of all features together.
    """

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._fingerprints: WeakKeyDictionary[nn.Module, tuple[Any, bytes]] = WeakKeyDictionary()
        self._lock = threading.Lock()  # a server embeds in several threads

    def __len__(self) -> int:
        return len(self._kept)

    def features(
        self, tower: nn.Module, rows: Sequence[torch.Tensor], compute: Callable[[list[int]], torch.Tensor]
    ) -> torch.Tensor:
        """The features `(n, width)` of `n` rows, without gradient.

        Args:
            tower: whose weights decide them.
            rows: a tensor each, all that tells one row from another.
            compute: from the places of some rows to their features; called for those not met before, a few at once.
        """
        prefix = self._fingerprint(tower)
        keys = [_key(prefix, row) for row in rows]
        with self._lock:
            found = {place: self._kept[key] for place, key in enumerate(keys) if key in self._kept}
            for place in found:
                self._kept.move_to_end(keys[place])
        missing = [place for place in range(len(keys)) if place not in found]
        for start in range(0, len(missing), _AT_ONCE):
            places = missing[start : start + _AT_ONCE]
            # What was kept in inference mode could not be trained on later.
            with torch.inference_mode(False), torch.no_grad():
                computed = [value.clone() for value in compute(places)]  # views would hold their whole batch
            with self._lock:
                for place, value in zip(places, computed, strict=True):
                    found[place] = value
                    self._keep(keys[place], value)
        return torch.stack([found[place] for place in range(len(keys))])

    def _keep(self, key: bytes, value: torch.Tensor) -> None:
        if key not in self._kept:
            self._kept[key] = value
            self._bytes += value.nbytes
        while self._bytes > self.capacity_bytes:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.nbytes

    def _fingerprint(self, tower: nn.Module) -> bytes:
        """A digest of everything that decides the tower's answers, taken anew when a weight may have been written to.

        A write leaves its mark in the version of a tensor, but not that of a fused optimizer.
        """
        tensors = [*tower.parameters(), *tower.buffers()]
        trains = any(tensor.requires_grad for tensor in tensors)
        marks = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        known = self._fingerprints.get(tower)
        if known is None or known[0] != marks or trains:
            digest = hashlib.blake2b(tower.config.to_json_string(use_diff=False).encode())
            for tensor in tensors:
                digest.update(str(tensor.dtype).encode())
                digest.update(_bytes_of(tensor.detach()))
            known = self._fingerprints[tower] = marks, digest.digest()
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return known[1] + str(autocast).encode()


def may_remember(tower: nn.Module, rows: torch.Tensor) -> bool:
    """Whether the answers for `rows` are a function of them alone, needed without gradient, and dearer than a look-up.

    On a GPU the way to the memo would cost more than the tower; adapters can be switched without a trace in the weights.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters()):
        return False
    modules = list(tower.modules())
    draws = tower.training and any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules)
    return not draws and not any(hasattr(module, "base_layer") for module in modules)


def _key(prefix: bytes, row: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(prefix, digest_size=16)
    digest.update(f"{row.dtype} {tuple(row.shape)}".encode())
    digest.update(_bytes_of(row))
    return digest.digest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
