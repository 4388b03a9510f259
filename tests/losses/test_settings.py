"""Settings that cannot be are refused with what was expected, before anything is loaded."""

import pytest
import torch

from hf_clip_domain.cli.main import main
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import InfoNCE, build_loss

REFUSED = {
    "unknown setting": ("info_nce", {"label_smothing": 0.1}, "no setting 'label_smothing'.*Did you mean 'label_smoothing'"),
    "unknown kind": ("info_nce", {"negatives": {"kind": "hrad"}}, "expected one of all, hard, semi_hard, weighted"),
    "ratio above 1": ("info_nce", {"negatives": {"kind": "hard", "ratio": 1.5}}, "ratio 1.5: expected a number above 0 and"),
    "negative margin": ("siglip", {"negatives": {"kind": "semi_hard", "margin": -1}}, "margin -1: expected a number above 0"),
    "infinite weight": ("info_nce", {"negatives": {"weight": float("inf")}}, "weight inf"),
    "negative beta": ("info_nce", {"negatives": {"beta": -0.5}}, "beta -0.5: expected a number at least 0"),
    "unknown negative": ("info_nce", {"negatives": {"hardness": 1}}, "unknown setting 'hardness': expected kind, ratio"),
    "unknown relation": ("info_nce", {"positives": {"color": 1}}, "expected some of caption, image, label, terms"),
    "relation weight": ("info_nce", {"positives": {"label": 2}}, "label: 2: expected a weight above 0 and at most 1"),
    "positives as list": ("info_nce", {"positives": ["label"]}, "expected relation: weight"),
    "smoothing": ("info_nce", {"label_smoothing": 1.0}, "label_smoothing 1.0: expected a share from 0 to below 1"),
    "direction": ("info_nce", {"image_to_text_weight": 1.1}, "image_to_text_weight 1.1"),
    "negative temperature": ("info_nce", {"temperature_scales": [-1.0]}, "expected factors above 0"),
    "weights' length": (
        "info_nce", {"temperature_scales": [1, 0.5], "temperature_weights": [1]}, "expected 2 of them, found 1"
    ),
    "weights all 0": ("info_nce", {"resolution_weights": [0, 0]}, "not all 0"),
    "decoupled siglip": ("siglip", {"negatives": {"decoupled": True}}, "decoupled has no meaning"),
    "similarity": ("info_nce", {"similarity": "cosin"}, 'unknown similarity "cosin"'),
    "no terms": ("sum", {"terms": []}, "expected a list of terms"),
    "nameless term": ("sum", {"terms": [{"weight": 1}]}, "lacks the name"),
    "term's weight": ("sum", {"terms": [{"name": "info_nce", "weight": 0}]}, "weight 0: expected a number above 0"),
    "term's setting": ("sum", {"terms": [{"name": "info_nce", "margin": 1}]}, "info_nce has no setting 'margin'"),
    "two similarities": ("sum", {"terms": [{"name": "info_nce", "similarity": "dot"}]}, "give it once, beside terms"),
    "balance": ("sum", {"terms": [{"name": "info_nce"}], "balance": "auto"}, "expected one of fixed, uncertainty"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    name, settings, message = REFUSED[case]
    with pytest.raises(ClipDomainError, match=message):
        build_loss(name, **settings)


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_run_is_refused_before_its_model_is_looked_for(command, capsys, tmp_path):
    settings = ["--loss_settings", "{negatives: {kind: hrad}}"]
    assert main([command, "--model_name_or_path", "no/such-model", *settings, "--output_dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "expected one of all, hard" in error and "no/such-model" not in error


def test_a_relation_that_the_batch_lacks_is_named():
    embeds = torch.eye(3)
    with pytest.raises(ClipDomainError, match="no 'label' .it has 'caption'.: give the collator relations"):
        InfoNCE(positives={"label": 0.5})(
            embeds, embeds, logit_scale=torch.tensor(1.0), targets={"caption": torch.arange(3)}
        )
    with pytest.raises(ClipDomainError, match="expected 2 of them, found 1"):
        InfoNCE(resolution_weights=[1])(torch.stack([embeds] * 2), embeds, logit_scale=torch.tensor(1.0))
