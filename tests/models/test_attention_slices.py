"""Attention in slices is attention: the same outputs and gradients, in less memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hf_clip_domain.models.attention_slices import sliced_attention, slices


def inputs(b, h, q, k, d=8, dtype=torch.float32):
    """As a model's layers make them: views that are not contiguous."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((b, q, h, d), (b, k, h, d), (b, k, h, d))
    return [torch.randn(size, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_() for size in sizes] + [
        torch.randn(b, q, h, d, generator=generator, dtype=dtype)
    ]


def plain(query, key, value, mask=None, causal=False):
    """The formula, written out."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1) @ value).transpose(1, 2)


def masks(kind, b, h, q, k):
    if kind == "padding":  # one dimension of 1 for all heads, one for all queries
        lengths = torch.arange(b) % k + 1
        return torch.arange(k)[None, None, None] < lengths[:, None, None, None]
    if kind == "padded causal":
        return masks("padding", b, h, q, k) & torch.ones(q, k, dtype=torch.bool).tril()
    if kind == "expanded":
        return masks("padding", b, h, q, k).expand(b, 1, q, k)
    if kind == "added":
        return torch.randn(b, h, q, k, generator=torch.Generator().manual_seed(1))
    if kind == "two-dimensional":
        return torch.ones(q, k, dtype=torch.bool).tril()
    return None


@pytest.mark.parametrize("budget", [1, 9_000, 40_000, 10**9])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((3, 2, 37, 37), None),
        ((3, 2, 37, 37), "causal"),
        ((3, 2, 37, 37), "padding"),
        ((3, 2, 37, 37), "padded causal"),
        ((3, 2, 37, 37), "expanded"),
        ((3, 2, 37, 37), "added"),
        ((3, 2, 37, 37), "two-dimensional"),
        ((2, 3, 1, 29), None),
        ((2, 3, 1, 1), "causal"),
        ((5, 1, 31, 31), "causal"),
        ((2, 3, 11, 40), "causal"),
        ((2, 3, 40, 11), "causal"),
        ((2, 3, 40, 11), None),
    ],
)
def test_outputs_and_gradients_are_those_of_the_formula(shape, kind, budget):
    *tensors, grad = inputs(*shape)
    mask, causal = masks(kind, *shape), kind == "causal"
    expected = plain(*tensors, mask, causal)
    output = sliced_attention(*tensors, mask, budget=budget, causal=causal)
    assert output.is_contiguous()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    expected_grads = torch.autograd.grad(expected, tensors, grad)
    for found, wanted in zip(torch.autograd.grad(output, tensors, grad), expected_grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_smaller_budget_cuts_rows_then_heads_then_queries():
    query, key, *_ = inputs(4, 3, 50, 50)
    cuts = {}
    for budget in (10**9, 400_000, 110_000, 20_000, 1):
        parts = list(slices(query, key, 0.0, budget))
        cuts[budget] = tuple(len({(part[i].start, part[i].stop) for part in parts}) for i in range(3))
        counted = torch.zeros(4, 3, 50)
        for part in parts:
            counted[part] += 1
        assert (counted == 1).all(), "every query once"
    assert cuts == {10**9: (1, 1, 1), 400_000: (2, 1, 1), 110_000: (4, 2, 1), 20_000: (4, 3, 4), 1: (4, 3, 50)}


@pytest.mark.parametrize("budget", [1, 9_000, 10**9])
def test_dropout_is_the_same_in_the_backward_pass(budget):
    *tensors, grad = inputs(1, 2, 5, 6, d=3, dtype=torch.float64)

    def attention(*tensors):
        torch.manual_seed(3)
        return sliced_attention(*tensors, budget=budget, dropout=0.4)

    assert not torch.allclose(attention(*tensors), plain(*tensors)), "dropout was not active"
    assert torch.autograd.gradcheck(attention, tensors)
    # The backward pass leaves the random state as it found it.
    output = attention(*tensors)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    output.backward(grad)
    assert torch.equal(torch.rand(3), expected)


def test_dropout_keeps_the_mean():
    *tensors, _ = inputs(1, 1, 4, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        mean = torch.stack([sliced_attention(*tensors, budget=1, dropout=0.3) for _ in range(2000)]).mean(0)
        torch.testing.assert_close(mean, plain(*tensors), rtol=0, atol=0.06)


def test_only_the_gradients_that_are_wanted():
    query, key, value, grad = inputs(2, 2, 10, 10)
    expected = torch.autograd.grad(plain(query, key, value), value, grad)[0]
    output = sliced_attention(query.detach(), key.detach(), value, budget=3000)
    torch.testing.assert_close(torch.autograd.grad(output, value, grad)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [None, "added"])
def test_under_bf16_autocast_it_rounds_as_the_plain_one(kind):
    *tensors, grad = inputs(2, 2, 40, 40)
    mask = masks(kind, 2, 2, 40, 40)
    exact = torch.autograd.grad(plain(*tensors, mask), tensors, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reference = F.scaled_dot_product_attention(*tensors, mask).transpose(1, 2)
        output = sliced_attention(*tensors, mask, budget=9_000)
    assert output.dtype == reference.dtype == torch.bfloat16
    torch.testing.assert_close(output, reference, rtol=2e-2, atol=2e-2)
    for found, wanted in zip(torch.autograd.grad(output, tensors, grad.bfloat16()), exact, strict=True):
        assert found.dtype == torch.float32
        assert 1e-4 < (found - wanted).norm() / wanted.norm() < 2e-2, "bf16 was not active, or wrong"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the kernel's count of peak memory")
def test_4096_tokens_stay_within_the_budget():
    """One head each: whole, the scores and their copies take 64 MiB a copy, three or more of them."""
    script = Path(__file__).parents[2] / "scripts" / "bench_attention.py"
    command = [sys.executable, str(script), "--tokens", "4096", "--heads", "1", "--budgets", "32"]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        [*command, "--turns", "0", "--json"], env=environment, check=True, capture_output=True, text=True
    )
    rows = json.loads(done.stdout)
    cut = [row for row in rows if row["budget"] is not None]
    whole = [row for row in rows if row["method"] in ("eager", "plain")]
    assert {row["dropout"] for row in cut} == {row["dropout"] for row in whole} == {0.0, 0.1}
    for row in cut:
        assert 2 < row["forward"] < 32 and 2 < row["backward"] < 32
        assert row["dropout"] or max(row["output_error"], row["gradient_error"]) < 1e-5
    assert all(row["backward"] > 150 for row in whole)
