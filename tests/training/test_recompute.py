"""Micro-batches that are embedded again in the backward pass: the same gradient, and nothing kept in between."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_clip_domain.models.quick_gelu import LeanQuickGELU
from hf_clip_domain.training.recompute import recomputed


def make_tower(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), LeanQuickGELU(), nn.Dropout(dropout), nn.Linear(24, 4))


def gradient(tower, embed, x, precision=torch.float32):
    """Of a loss over two halves, the first of which is embedded by `embed`."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        rows = torch.cat([embed(lambda c: tower(c["x"]), {"x": x[:8]}), tower(x[8:])])
        loss = (rows @ rows.T).float().square().mean()
    return torch.autograd.grad(loss, list(tower.parameters()))


def ours(tower):
    return lambda encode, chunk: recomputed(encode, chunk, list(tower.parameters()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gradient_is_that_of_torchs_checkpointing(precision, dropout):
    tower, x = make_tower(dropout), torch.randn(16, 6)
    expected = gradient(tower, lambda e, c: checkpoint(e, c, use_reentrant=False), x, precision)
    found = gradient(tower, ours(tower), x, precision)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        # In bf16 the gradients of both halves are added in fp32 here, and in bf16 there.
        torch.testing.assert_close(one, other, **({"atol": 2e-3, "rtol": 2e-2} if precision == torch.bfloat16 else {}))
    without = gradient(tower, lambda e, c: e(c), x, precision)
    for one, other in zip(found, without, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2 if precision == torch.bfloat16 else 1e-6, rtol=1e-2)


def test_no_graph_is_kept_and_random_draws_go_on_as_if_nothing_were_recomputed():
    tower, x = make_tower(0.5), torch.randn(8, 6)
    torch.manual_seed(3)
    result = ours(tower)(lambda c: tower(c["x"]), {"x": x})
    after = torch.get_rng_state()
    nodes = {type(node).__name__ for node, _ in result.grad_fn.next_functions if node is not None}
    assert nodes == {"AccumulateGrad"}
    result.sum().backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert all(p.grad is not None for p in tower.parameters())


def test_a_tower_goes_the_same_way_both_times():
    tower, ways = make_tower(), []
    result = ours(tower)(lambda c: ways.append(torch.is_grad_enabled()) or tower(c["x"]), {"x": torch.randn(8, 6)})
    result.sum().backward()
    assert ways == [True, True]


def test_a_frozen_tower_is_embedded_once():
    tower, calls = make_tower(), []
    result = recomputed(lambda c: calls.append(1) or tower(c["x"]), {"x": torch.randn(8, 6)}, [])
    result.sum().backward()  # of a tower nobody declared, an ordinary graph
    assert len(calls) == 1


def test_several_results_and_parameters_that_take_no_part():
    tower, idle = make_tower(), nn.Parameter(torch.ones(3))
    one, two = recomputed(lambda c: (tower(c["x"]), c["x"] * 2), {"x": torch.randn(8, 6)}, [*tower.parameters(), idle])
    (one.sum() + two.sum()).backward()
    assert idle.grad is None and tower[0].weight.grad.abs().sum() > 0
