"""Temperature scaling and the calibration error, on scores whose true scale is known and on a real model."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_clip_domain import ClipEmbedder
from hf_clip_domain.evaluation.calibration import calibrate, expected_calibration_error, fit_logit_scale


def drawn(scale, n=20_000, classes=5):
    """Scores, and labels drawn by their softmax at `scale`."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(n, classes, generator=generator)
    return scores, torch.multinomial((scale * scores).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_the_true_scale_is_found_and_has_the_smallest_error(scale):
    scores, labels = drawn(scale)
    fitted = fit_logit_scale(scores, labels, start=100.0)
    assert fitted == pytest.approx(scale, rel=0.1)
    errors = [expected_calibration_error((s * scores).softmax(1), labels) for s in (fitted, 4 * fitted, fitted / 4)]
    assert errors[0] < 0.02 and errors[0] < min(errors[1:])


def test_labels_that_the_scores_always_or_never_rank_first_stay_finite():
    scores = torch.eye(4).repeat(5, 1)
    assert fit_logit_scale(scores, scores.argmax(1), start=10.0) <= 1000
    assert fit_logit_scale(scores, (scores.argmax(1) + 1) % 4, start=10.0) >= 0.01


def test_the_error_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    # two at 0.9 of which one is right, one at 0.6 that is right
    assert expected_calibration_error(probabilities, torch.tensor([0, 1, 0])) == pytest.approx((2 * 0.4 + 0.4) / 3)


def shades(n, seed):
    rng = np.random.default_rng(seed)
    rows = [(name, value) for name, value in (("dark", 20), ("light", 230)) for _ in range(n)]
    images = [Image.fromarray((value + rng.integers(-20, 20, (24, 24, 3))).astype(np.uint8)) for _, value in rows]
    return Dataset.from_dict({"image": images, "label": [name for name, _ in rows]})


def test_a_models_fit_is_kept_beside_it_and_used(tmp_path):
    embedder = ClipEmbedder.from_pretrained("starter")
    calibration = calibrate(embedder, shades(12, 0), shades(12, 1))
    assert calibration.classes == ["dark", "light"]
    embedder.model.save_pretrained(tmp_path)
    embedder.processor.save_pretrained(tmp_path)
    calibration.save(tmp_path)
    again, pictures = ClipEmbedder.from_pretrained(tmp_path), shades(2, 2)["image"]
    expected = (calibration.logit_scale * embedder.class_scores(pictures, ["dark", "light"])).softmax(1)
    assert torch.allclose(again.classify(pictures, ["dark", "light"]), expected, atol=1e-6)


def test_labels_that_are_no_classes_are_left_alone():
    embedder = ClipEmbedder.from_pretrained("starter")
    pairs = shades(4, 0)
    for labels in ([None] * 8, list("abcdefgh"), ["same"] * 8):
        other = Dataset.from_dict({"image": pairs["image"], "label": labels})
        assert calibrate(embedder, other, other) is None
