"""Every composition against the dense float64 reference: value and gradients, whole and in blocks."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hf_clip_domain.losses import InfoNCE, SigLIP, WeightedSum, log_sum_exp, streaming
from hf_clip_domain.similarity import Bilinear
from hf_clip_domain.types import LossOutput
from tests.losses import reference

NEGATIVES = {
    "all": {},
    "hard": {"kind": "hard", "ratio": 0.4, "weight": 2.0, "easy_weight": 0.5},
    "hardest alone": {"kind": "hard", "ratio": 0.1},
    "semi-hard": {"kind": "semi_hard", "margin": 0.6},
    "weighted": {"kind": "weighted", "beta": 0.7},
    "decoupled": {"decoupled": True},
    "weighted and decoupled": {"kind": "weighted", "beta": 0.3, "decoupled": True},
}
RELATED = {"caption": 1.0, "label": 0.5, "terms": 0.3}


def embeddings(n, m, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, m))
    return [F.normalize(side, dim=1).requires_grad_() for side in sides]


def targets_of(kind, n, m):
    generator = torch.Generator().manual_seed(3)
    if kind == "one each":
        return None
    if kind == "ids":
        return torch.randint(0, max(1, n // 2), (n,), generator=generator)
    if kind == "relations":
        return {
            "caption": torch.arange(n) // 2,
            "label": torch.arange(n) % 3,
            "terms": torch.randint(0, 2, (n, 4), generator=generator),
        }
    graded = torch.rand(n, m, generator=generator, dtype=torch.float64)
    graded = torch.where(graded > 0.6, graded, 0.0)
    graded[0] = 0  # an image without any positive
    return graded


SHAPES = {"one each": [(1, 1), (7, 7)], "ids": [(7, 7)], "relations": [(7, 7)], "graded matrix": [(5, 7), (7, 3)]}
CASES = [(kind, *shape) for kind, shapes in SHAPES.items() for shape in shapes]


@pytest.fixture(params=["whole", "in blocks"])
def blocks(request, monkeypatch):
    """Block and tile sizes that divide nothing."""
    if request.param == "in blocks":
        monkeypatch.setattr(streaming, "BLOCK", 15)
        monkeypatch.setattr(log_sum_exp, "TILE", 3)


def assert_same(loss, expected, variables):
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    found = torch.autograd.grad(loss, variables, allow_unused=True)
    wanted = torch.autograd.grad(expected, variables, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        one, other = (torch.zeros(()) if gradient is None else gradient for gradient in (one, other))
        assert (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_info_nce(case, negatives, smoothing, blocks):
    kind, n, m = case
    image, text = embeddings(n, m)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    targets = targets_of(kind, n, m)
    loss = InfoNCE(
        positives=RELATED, negatives=NEGATIVES[negatives], label_smoothing=smoothing, image_to_text_weight=0.3
    )
    output = loss(image, text, logit_scale=scale, targets=targets)
    weights = reference.pair_weights(targets, n, m, RELATED)
    expected = reference.info_nce(image @ text.T, scale, weights, smoothing, 0.3, **NEGATIVES[negatives])
    assert_same(output.loss, expected, (image, text, scale))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("negatives", ["all", "hard", "semi-hard", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_siglip(case, negatives, smoothing, blocks):
    kind, n, m = case
    image, text = embeddings(n, m)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    targets = targets_of(kind, n, m)
    loss = SigLIP(
        positives=RELATED, negatives=NEGATIVES[negatives], label_smoothing=smoothing, logit_bias=-2.0
    ).double()
    output = loss(image, text, logit_scale=scale, targets=targets)
    weights = reference.pair_weights(targets, n, m, RELATED)
    expected = reference.siglip(image @ text.T, scale, weights, loss.bias, smoothing, **NEGATIVES[negatives])
    assert_same(output.loss, expected, (image, text, scale, loss.bias))


@pytest.mark.parametrize("name", ["dot", "euclidean", "bilinear", "function"])
def test_similarities(name, blocks):
    image, text = embeddings(5, 5, seed=4)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    similarity = {"bilinear": Bilinear(6).double(), "function": lambda a, b: (a @ b.T).tanh()}.get(name, name)
    learned = list(similarity.parameters()) if name == "bilinear" else []
    if learned:
        torch.nn.init.normal_(learned[0], generator=torch.Generator().manual_seed(1))
    output = InfoNCE(similarity=similarity)(image, text, logit_scale=scale, targets=torch.tensor([0, 1, 1, 2, 3]))
    scores = {
        "dot": lambda: image @ text.T,
        "euclidean": lambda: -torch.cdist(image, text).square(),
        "bilinear": lambda: image @ learned[0] @ text.T,
        "function": lambda: (image @ text.T).tanh(),
    }[name]()
    weights = reference.pair_weights(torch.tensor([0, 1, 1, 2, 3]), 5, 5, {})
    assert_same(output.loss, reference.info_nce(scores, scale, weights), (image, text, scale, *learned))


def test_temperature_scales_and_resolutions_are_weighted_means(blocks):
    small, text = embeddings(6, 6, seed=1)
    large, _ = embeddings(6, 6, seed=2)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    loss = InfoNCE(temperature_scales=[1.0, 0.5], temperature_weights=[3, 1], resolution_weights=[1, 4])
    output = loss(torch.stack([small, large]), text, logit_scale=scale)
    own = torch.eye(6, dtype=torch.float64)
    expected = sum(
        size * share * reference.info_nce(image @ text.T, factor * scale, own)
        for (image, size), (factor, share) in itertools.product(
            [(small, 0.2), (large, 0.8)], [(1.0, 0.75), (0.5, 0.25)]
        )
    )
    assert_same(output.loss, expected, (small, large, text, scale))


@pytest.mark.parametrize("balance", ["fixed", "uncertainty"])
def test_sums_of_losses(balance, blocks):
    image, text = embeddings(6, 6)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    terms = [{"name": "info_nce", "weight": 2.0}, {"name": "siglip", "weight": 0.5, "logit_bias": -1.0}]
    loss = WeightedSum(terms=terms, balance=balance).double()
    output = loss(image, text, logit_scale=scale)
    own, scores = torch.eye(6, dtype=torch.float64), image @ text.T
    bias = loss.losses[1].bias
    values = reference.info_nce(scores, scale, own), reference.siglip(scores, scale, own, bias)
    if balance == "fixed":
        expected, learned = 2 * values[0] + 0.5 * values[1], []
    else:
        learned = [loss.log_variances]
        assert (-loss.log_variances).exp().tolist() == pytest.approx([2.0, 0.5])
        variances = loss.log_variances.exp()
        expected = sum(value / variance + variance.log() / 2 for value, variance in zip(values, variances, strict=True))
    assert_same(output.loss, expected, (image, text, scale, bias, *learned))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "loss",
    [InfoNCE(), InfoNCE(negatives={"kind": "hard"}), SigLIP(), WeightedSum(terms=[{"name": "info_nce"}])],
    ids=["tiles", "blocks", "siglip", "sum"],
)
def test_the_mean_of_all_shares_is_the_whole(loss, count, monkeypatch):
    """Without processes the columns' sums are not joined, so the tiled path is tried in test_distributed."""
    if isinstance(loss, WeightedSum) or (isinstance(loss, InfoNCE) and loss.negatives.kind == "all"):
        monkeypatch.setattr(InfoNCE, "_from_products", lambda *_: None)
    image, text = embeddings(7, 7)
    loss = loss.double()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    whole = loss(image, text, logit_scale=scale).loss
    shares = [loss(image, text, logit_scale=scale, share=(index, count)).loss for index in range(count)]
    assert_same(torch.stack(shares).mean(), whole, (image, text, scale))


def test_gradcheck():
    image, text = embeddings(4, 4, d=3)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def value(*tensors):
        return InfoNCE()(tensors[0], tensors[1], logit_scale=tensors[2], targets=torch.tensor([0, 1, 1, 2])).loss

    assert torch.autograd.gradcheck(value, (image, text, scale))
    assert torch.autograd.gradcheck(
        lambda *tensors: SigLIP(logit_bias=-2.0).double()(tensors[0], tensors[1], logit_scale=tensors[2]).loss,
        (image, text, scale),
    )


@pytest.mark.parametrize("spread", [5.0, 500.0])
def test_tiles_hold_at_any_spread_of_the_logits(spread, monkeypatch):
    """Beyond the range of one exponential a row far below the tile's largest logit must not vanish."""
    monkeypatch.setattr(log_sum_exp, "TILE", 4)
    image, text = embeddings(9, 6, seed=5)
    scale = torch.tensor(spread, dtype=torch.float64, requires_grad=True)
    rows, columns = log_sum_exp.log_sum_exp(image, text, scale)
    logits = scale * image @ text.T
    assert_same((rows**2).sum() + columns.sum(), (logits.logsumexp(1) ** 2).sum() + logits.logsumexp(0).sum(),
                (image, text, scale))  # fmt: skip
    single = log_sum_exp.log_sum_exp(image.float(), text.float(), scale.float())
    assert torch.allclose(single[0].double(), rows, rtol=1e-5)


HARD_INPUTS = {
    "identical embeddings": (torch.ones(8, 4) / 2, torch.ones(8, 4) / 2, None),
    "zero vectors": (torch.zeros(8, 4), torch.zeros(8, 4), None),
    "a single pair": (torch.ones(1, 4) / 2, torch.ones(1, 4) / 2, None),
    "all duplicates": (F.normalize(torch.randn(8, 4), dim=1), torch.ones(8, 4) / 2, torch.zeros(8, dtype=torch.int64)),
    "the largest scale": (F.normalize(torch.randn(8, 4), dim=1),) * 2 + (None,),
}


@pytest.mark.parametrize("inputs", HARD_INPUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_no_overflow_and_no_nan(inputs, dtype, negatives):
    image, text, targets = HARD_INPUTS[inputs]
    for loss in (InfoNCE(negatives=NEGATIVES[negatives]), SigLIP()):
        image, text = image.to(dtype).requires_grad_(), text.to(dtype).clone().requires_grad_()
        scale = torch.tensor(100.0, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(image, text, logit_scale=scale, targets=targets).loss
        gradients = torch.autograd.grad(value, (image, text, scale))
        assert value.dtype == torch.float32 and torch.isfinite(value)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_batch_of_duplicates_is_at_its_minimum_when_all_are_alike():
    """Everything belongs together: the loss is the entropy of the spread target, and nothing pulls."""
    image = F.normalize(torch.ones(6, 4), dim=1).requires_grad_()
    output = InfoNCE()(image, image.detach(), logit_scale=torch.tensor(20.0), targets=torch.zeros(6, dtype=torch.long))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(torch.log(torch.tensor(6.0)).item(), abs=1e-5)
    assert image.grad.abs().max() < 1e-6


def test_a_sum_has_one_similarity_and_trains_it_once(blocks):
    terms = [{"name": "info_nce"}, {"name": "siglip", "weight": 0.5, "logit_bias": -1.0}]
    loss = WeightedSum(terms=terms, similarity="bilinear").double()
    loss.similarity.fit(6)
    loss.double()
    image, text = embeddings(5, 5)
    scale = torch.tensor(3.0, dtype=torch.float64)
    output = loss(image, text, logit_scale=scale)
    scores, own = image @ loss.similarity.weight @ text.T, torch.eye(5, dtype=torch.float64)
    bias = loss.losses[1].bias
    expected = reference.info_nce(scores, scale, own) + 0.5 * reference.siglip(scores, scale, own, bias)
    assert_same(output.loss, expected, (image, text, loss.similarity.weight, bias))
    assert sorted(loss.state_dict()) == ["losses.1.begun", "losses.1.bias", "similarity.weight"]


def test_a_users_loss_is_a_term_without_knowing_of_shares():
    class Distance(torch.nn.Module):
        def forward(self, image_embeds, text_embeds, *, logit_scale, targets=None):
            return LossOutput((image_embeds - text_embeds).square().sum(1).mean())

    image, text = embeddings(4, 4)
    scale = torch.tensor(3.0, dtype=torch.float64)
    output = WeightedSum(terms=[InfoNCE(), Distance()])(image, text, logit_scale=scale, share=(0, 1))
    alone = InfoNCE()(image, text, logit_scale=scale).loss + (image - text).square().sum(1).mean()
    assert output.loss.item() == pytest.approx(alone.item(), abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_siglips_bias_begins_where_the_first_batch_puts_it(scale):
    """So that the loss starts near that of guessing one positive in a row, whatever the model's temperature."""
    image, text = embeddings(32, 32, d=64)
    common = torch.full((64,), 0.1, dtype=torch.float64)  # CLIP's embeddings share a direction
    image, text = F.normalize(image + common, dim=1), F.normalize(text + common, dim=1)
    loss = SigLIP().double()
    first = loss(image, text, logit_scale=torch.tensor(scale)).loss
    guessing = 32 * (-(1 / 32) * math.log(1 / 32) - (31 / 32) * math.log(31 / 32))
    assert first < 3 * guessing * max(1, scale / 14)
    begun = loss.bias.item()
    loss(text, image, logit_scale=torch.tensor(2 * scale))
    assert loss.bias.item() == begun and loss.begun


def test_a_lighter_caption_weighs_less_as_ids_too():
    image, text = embeddings(6, 6)
    ids = torch.tensor([0, 1, 1, 2, 3, 0])
    light = InfoNCE(positives={"caption": 0.3})
    as_ids = light(image, text, logit_scale=torch.tensor(5.0), targets=ids).loss
    as_mapping = light(image, text, logit_scale=torch.tensor(5.0), targets={"caption": ids}).loss
    whole = InfoNCE()(image, text, logit_scale=torch.tensor(5.0), targets=ids).loss
    assert as_ids.item() == pytest.approx(as_mapping.item(), abs=1e-12) and abs(as_ids - whole) > 1e-3
