"""InfoNCE against its definition, written out in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import InfoNCE, available_losses, build_loss


def embeddings(n, m=None, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, d, generator=generator, dtype=torch.float64)
    text = torch.randn(m or n, d, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=1).requires_grad_(), F.normalize(text, dim=1).requires_grad_()


def by_definition(image, text, scale, weights):
    """Loops over every row and positive, with plain exponentials."""
    logits = scale * image @ text.T
    directions = []
    for scores, positive in ((logits, weights), (logits.T, weights.T)):
        rows = []
        for row, weight in zip(scores, positive, strict=True):
            if weight.sum() > 0:
                probability = row.exp() / row.exp().sum()
                rows.append(-(weight / weight.sum() * probability.log()).sum())
        directions.append(torch.stack(rows).mean())
    return sum(directions) / 2


CASES = {
    "one positive": (6, 6, None),
    "a single pair": (1, 1, None),
    "groups": (6, 6, torch.tensor([0, 1, 0, 2, 1, 0])),
    "boolean matrix": (4, 7, torch.rand(4, 7, generator=torch.Generator().manual_seed(1)) > 0.5),
    "graded matrix": (5, 3, torch.rand(5, 3, generator=torch.Generator().manual_seed(2))),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_the_definition(case):
    n, m, targets = CASES[case]
    image, text = embeddings(n, m)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    if targets is None:
        weights = torch.eye(n, dtype=torch.float64)
    elif targets.ndim == 1:
        weights = (targets[:, None] == targets[None]).double()
    else:
        weights = targets.double()
    output = InfoNCE()(image, text, logit_scale=scale, targets=targets)
    expected = by_definition(image, text, scale, weights)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    found = torch.autograd.grad(output.loss, (image, text, scale))
    wanted = torch.autograd.grad(expected, (image, text, scale))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-10


def test_equal_captions_are_not_negatives():
    """Two rows of the same caption: without targets the loss can't reach zero, with them it is at its minimum."""
    axes = torch.eye(4)
    image = text = axes[[0, 0, 1, 2]]
    plain = InfoNCE()(image, text, logit_scale=torch.tensor(100.0)).loss
    grouped = InfoNCE()(image, text, logit_scale=torch.tensor(100.0), targets=torch.tensor([0, 0, 1, 2]))
    # Spread over two positives the cross-entropy cannot fall below their entropy, ln 2 for half of the rows.
    assert grouped.loss.item() == pytest.approx(math.log(2) / 2, abs=1e-5)
    assert plain.item() == pytest.approx(grouped.loss.item(), abs=1e-5)
    moved = F.normalize(text + torch.tensor([[0, 0, 0, 0.1], [0, 0, 0, -0.1], [0.0] * 4, [0.0] * 4]), dim=1)
    split = F.normalize(image + torch.tensor([[0, 0, 0, 0.1], [0, 0, 0, -0.1], [0.0] * 4, [0.0] * 4]), dim=1)
    scale = torch.tensor(100.0)
    same = torch.tensor([0, 0, 1, 2])
    assert InfoNCE()(split, moved, logit_scale=scale).loss < plain  # plain InfoNCE rewards tearing duplicates apart
    assert InfoNCE()(split, moved, logit_scale=scale, targets=same).loss > grouped.loss  # with targets it does not


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_the_largest_scale(dtype):
    image = F.normalize(torch.randn(16, 8), dim=1).to(dtype).requires_grad_()
    output = InfoNCE()(image, image, logit_scale=torch.tensor(100.0), targets=torch.zeros(16, dtype=torch.long))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss) and torch.isfinite(image.grad).all()


def test_rows_without_positives_take_no_part():
    image, text = embeddings(3)
    nothing = InfoNCE()(image, text, logit_scale=torch.tensor(5.0), targets=torch.zeros(3, 3))
    nothing.loss.backward()
    assert nothing.loss.item() == 0 and image.grad.abs().max() == 0


@pytest.mark.parametrize("targets", [torch.zeros(3), torch.zeros(4, 4), torch.zeros(2, 3, 1)])
def test_targets_of_another_shape_are_refused(targets):
    image, text = embeddings(4, 3)
    with pytest.raises(ClipDomainError, match="shape"):
        InfoNCE()(image, text, logit_scale=torch.tensor(1.0), targets=targets)


def test_unequal_counts_need_targets():
    with pytest.raises(ClipDomainError, match="targets"):
        InfoNCE()(*embeddings(4, 3), logit_scale=torch.tensor(1.0))


def test_losses_by_name_and_by_path(tmp_path, monkeypatch):
    assert isinstance(build_loss("info_nce"), InfoNCE) and "info_nce" in available_losses()
    (tmp_path / "home_made_losses.py").write_text(
        "import torch\nclass Mine(torch.nn.Module):\n    pass\ndef no(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert type(build_loss("home_made_losses:Mine")).__name__ == "Mine"
    for name, message in {
        "info_nse": "Did you mean 'info_nce'",
        "home_made_losses:Yours": "could not be imported",
        "no_such_module:Loss": "could not be imported",
        "home_made_losses:no": "must be a torch.nn.Module",
    }.items():
        with pytest.raises(ClipDomainError, match=message):
            build_loss(name)
    with pytest.raises(ClipDomainError, match="has no setting .temperature.; it has image_to_text_weight, similarity"):
        build_loss("info_nce", temperature=1)
