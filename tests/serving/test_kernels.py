"""A faster way of computing is taken only where it is faster and finds the same; what was asked for, or nothing."""

import dataclasses
import shutil

import numpy as np
import pytest

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving import kernels
from hf_clip_domain.serving.canary import check_candidate, draw_canary
from hf_clip_domain.serving.kernels import Trial, agreement, choose_kernels
from hf_clip_domain.serving.model import Kernels, LoadedModel
from hf_clip_domain.serving.settings import Settings


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_agreement_forgives_ties_and_not_wrong_matches():
    rng = np.random.default_rng(0)
    reference = Trial(unit(rng.normal(size=(40, 16))), unit(rng.normal(size=(30, 16))), 1.0)
    noisy = dataclasses.replace(reference, images=unit(reference.images + rng.normal(size=(40, 16)) * 1e-4))
    assert agreement(reference, reference) == 1.0 and agreement(reference, noisy) == 1.0
    shuffled = dataclasses.replace(reference, images=reference.images[::-1].copy())
    assert agreement(reference, shuffled) < 0.2
    broken = dataclasses.replace(reference, texts=np.full_like(reference.texts, np.nan))
    assert agreement(reference, broken) == 0.0


def test_fp32_is_what_is_served_unless_asked(folder):
    assert choose_kernels(LoadedModel.load(folder), Settings()).kernels == Kernels()


def test_a_precision_that_was_asked_for_serves_and_passes_its_checks(folder):
    model = choose_kernels(LoadedModel.load(folder), Settings(precision="bf16"))
    assert model.kernels.precision == "bf16" and model.describe()["precision"] == "bf16"
    check_candidate(model, LoadedModel.load(folder))
    rows = model.encode_texts(model.token_ids(["a b", "c"]))
    exact = LoadedModel.load(folder).encode_texts(model.token_ids(["a b", "c"]))
    assert rows.dtype == np.float32 and 0 < np.abs(rows - exact).max() < 0.05


@pytest.fixture
def trials(monkeypatch, folder):
    """Choose as on a machine that computes bf16, given what the trials find: `(seconds, noise)` each."""

    def run(outcomes, **settings):
        rng = np.random.default_rng(0)
        images, texts, waiting = unit(rng.normal(size=(40, 16))), unit(rng.normal(size=(30, 16))), list(outcomes)

        def trial(model):
            seconds, noise = waiting.pop(0)
            if seconds is None:
                raise RuntimeError("no such operator")
            return Trial(unit(images + noise * rng.normal(size=images.shape)), texts, seconds)

        monkeypatch.setattr(kernels, "_run", trial)
        monkeypatch.setattr(kernels, "candidate", lambda device: ("bf16", "it has bf16"))
        return choose_kernels(LoadedModel.load(folder), Settings(**{"precision": "auto", **settings}))

    return run


def test_auto_takes_what_is_faster_and_finds_the_same(trials):
    assert trials([(1.0, 0), (0.5, 1e-4)]).kernels.precision == "bf16"
    for slower_or_wrong in ((0.95, 1e-4), (0.5, 0.5), (None, 0)):
        model = trials([(1.0, 0), slower_or_wrong])
        assert model.kernels == Kernels() and model.notes[0].endswith("not used")


def test_what_was_asked_for_must_be_right_and_may_be_slow(trials):
    assert trials([(1.0, 0), (2.0, 1e-4)], precision="bf16").kernels.precision == "bf16"
    for wrong in ((0.5, 0.5), (None, 0)):
        with pytest.raises(ClipDomainError, match="bf16 was asked for"):
            trials([(1.0, 0), wrong], precision="bf16")
    with pytest.raises(ClipDomainError, match="compile was asked for"):
        trials([(1.0, 0), (None, 0)], precision="fp32", compile="on")


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_model_serves_what_the_plain_one_does(folder):
    model = choose_kernels(LoadedModel.load(folder), Settings(compile="on"))
    assert model.kernels.compiled and "compile: x" in model.notes[0]
    plain = LoadedModel.load(folder)
    for texts in (["a b"], ["c", "a longer text than that", "z"]):
        ids = plain.token_ids(texts)
        assert np.abs(model.encode_texts(ids) - plain.encode_texts(ids)).max() < 1e-5
    pixels = [plain.pixels(draw_canary(seed)) for seed in range(3)]
    assert np.abs(model.encode_images(pixels) - plain.encode_images(pixels)).max() < 1e-5
