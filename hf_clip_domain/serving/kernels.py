"""How a model computes here: plain fp32, or a lower precision, another memory layout or compiled code where measured
faster and proved to find the same.

Attention goes through torch's scaled dot product in every case; the choice is what the clock and a small retrieval
decide on this machine, with this model.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_clip_domain.device import describe
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.precision import candidate
from hf_clip_domain.serving.canary import TEXTS, draw_canary
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.settings import Settings

log = logging.getLogger(__name__)
_PICTURES = 48
_FASTER = 1.1
# What a query finds must be as good as before: by so much less similar, at most, and for so many queries.
_REGRET = 0.002
_AGREEING = 0.99


@dataclass(frozen=True)
class Trial:
    """One way of computing: what it gives and how long it takes for the canary set."""

    images: np.ndarray  # (n, d), length 1
    texts: np.ndarray  # (m, d), length 1
    seconds: float


def choose_kernels(model: LoadedModel, settings: Settings) -> LoadedModel:
    """Set the model's precision, layout and compilation; its `notes` say why.

    Raises:
        ClipDomainError: a precision or compilation that was asked for does not work, or does not find the same.
    """
    if model.export is not None:
        return _exported(model, settings)
    kind = model.device.type
    wanted = candidate(describe(model.device))[0] if settings.precision == "auto" else settings.precision
    tries: list[tuple[str, bool, dict[str, Any]]] = []  # name, whether it was asked for, what it changes
    if wanted != "fp32":
        tries.append((wanted, settings.precision != "auto", {"precision": wanted}))
    if kind == "cuda":
        tries.append(("channels_last", False, {"channels_last": True}))
    if settings.compile == "on" or (settings.compile == "auto" and kind == "cuda"):
        tries.append(("compile", settings.compile == "on", {"compiled": True}))
    reference = best = _run(model) if tries else None
    for name, asked, change in tries:
        before = model.kernels
        try:
            model.use(dataclasses.replace(before, **change))
            trial = _run(model)
        except Exception as error:  # a compiler or driver that is not there, memory, an operator
            outcome, kept = f"failed ({' '.join(str(error).split())[:200]})", False
        else:
            agreeing, speedup = agreement(reference, trial), best.seconds / trial.seconds
            outcome = f"x{speedup:.2f} as fast, {agreeing:.1%} of the queries find as good a match"
            kept = agreeing >= _AGREEING and (asked or speedup >= _FASTER)
        if asked and not kept:
            raise ClipDomainError(f"{name} was asked for and is not fit here: {outcome}.")
        if kept:
            best = trial
        else:
            model.use(before)
        model.notes.append(f"{name}: {outcome}{'' if kept else '; not used'}")
    log.info("kernels chosen", extra={"kernels": str(model.kernels), "trials": model.notes})
    model.describe()  # computes once what requests ask for later
    return model


def _exported(model: LoadedModel, settings: Settings) -> LoadedModel:
    """An export was compared with its original when it was written, and computes in one way alone."""
    record = model.export.record
    if settings.precision not in ("auto", "fp32") or settings.compile == "on":
        raise ClipDomainError(
            f"{model.source} is an export ({record.format}, {record.precision}), which --precision and --compile do not "
            "change: leave them out, or export again with --quantize int8."
        )
    recall = record.check.get("retrieval_delta", float("nan"))
    model.notes.append(f"{record.format}, {record.precision}: recall within {recall:.2f} points of {record.source}'s")
    model.describe()
    return model


def agreement(reference: Trial, trial: Trial) -> float:
    """Share of queries whose best match by `trial` is, by the reference's own scores, as good as the reference's best.

    Texts are searched by pictures, pictures by texts, and each picture's nearest other picture.
    """
    shares = []
    for name, other in (("images", "texts"), ("texts", "images"), ("images", "images")):
        before = getattr(reference, name) @ getattr(reference, other).T
        after = getattr(trial, name) @ getattr(trial, other).T
        if name == other:
            np.fill_diagonal(before, -np.inf)
            np.fill_diagonal(after, -np.inf)
        rows = np.arange(len(before))
        shares.append(before.max(axis=1) - before[rows, after.argmax(axis=1)] <= _REGRET)
    finite = np.isfinite(trial.images).all() and np.isfinite(trial.texts).all()
    return float(np.concatenate(shares).mean()) if finite else 0.0


def _run(model: LoadedModel) -> Trial:
    pixels = [model.pixels(draw_canary(seed)) for seed in range(_PICTURES)]
    texts = [f"{text}, number {number}" for number in range(8) for text in TEXTS]
    ids = sorted(model.token_ids(texts), key=len)
    times = []
    for _ in range(4):  # the first compiles and fills caches
        started = time.perf_counter()
        images, found = model.encode_images(pixels), model.encode_texts(ids)  # both end on the CPU
        times.append(time.perf_counter() - started)
    return Trial(_unit(images), _unit(found), statistics.median(times[1:]))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
