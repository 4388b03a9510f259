"""Attention over few tokens in bfloat16: near the exact one, hardly further from it than torch's own kernel."""

import pytest
import torch
import torch.nn.functional as F
from small_clip import make_clip

from hf_clip_domain.models.attention import use_sliced_attention
from hf_clip_domain.models.short_attention import MOST_TOKENS, is_short, short_attention

SHAPES = [(3, 50, 12, 64), (5, 77, 4, 40), (2, 3, 2, 16), (2, MOST_TOKENS, 2, 32)]


def inputs(shape):
    torch.manual_seed(0)
    # Queries before heads, as a tower's projections leave them.
    return [torch.randn(shape, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3)]


def padded(shape):
    """Causal, and the last two captions end before the others."""
    batch, tokens = shape[:2]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().repeat(batch, 1, 1, 1)
    mask[-2:, :, :, 1 + tokens // 2 :] = False
    return mask


def with_gradients(attend, parts):
    parts = [part.detach().requires_grad_() for part in parts]
    torch.manual_seed(1)
    output = attend(*parts)
    output.backward(torch.randn(output.shape).to(output.dtype))
    return [output.detach(), *(part.grad for part in parts)]


def errors(found, true):
    return [((one.double() - exact).norm() / exact.norm()).item() for one, exact in zip(found, true, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seen", ["all", "before", "mask"])
def test_output_and_gradients(shape, seen):
    parts = inputs(shape)
    mask, causal = (padded(shape) if seen == "mask" else None), seen == "before"

    def torch_own(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=0.2).transpose(1, 2)

    true = with_gradients(torch_own, [part.double() for part in parts])
    kernel = errors(with_gradients(torch_own, parts), true)
    own = errors(with_gradients(lambda *p: short_attention(*p, mask, scale=0.2, causal=causal), parts), true)
    for far, allowed in zip(own, kernel, strict=True):
        assert far <= 2 * allowed + 2**-9  # the weights, too, are rounded to 8 bits


def test_a_row_that_may_see_nothing_stays_finite():
    mask = torch.zeros(3, 1, 50, 50, dtype=torch.bool)
    for found in with_gradients(lambda *parts: short_attention(*parts, mask), inputs(SHAPES[0])):
        assert found.isfinite().all()


@pytest.mark.parametrize("layout", ["apart", "contiguous"])
def test_any_strides(layout):
    parts = inputs(SHAPES[1])
    other = [part.contiguous() if layout == "contiguous" else part.repeat(1, 1, 1, 2)[..., ::2] for part in parts]
    if layout == "apart":
        parts = [part.detach() for part in other]
    for one, same in zip(
        with_gradients(short_attention, parts),
        with_gradients(short_attention, [part.contiguous() for part in other]),
        strict=True,
    ):
        torch.testing.assert_close(one, same, rtol=0, atol=0)


def test_what_is_left_to_torch():
    query, *_ = inputs(SHAPES[0])
    assert is_short(query, query, None, 0.0)
    assert not is_short(query.float(), query.float(), None, 0.0)  # its kernel is as fast
    assert not is_short(query, query, None, 0.1)
    assert not is_short(query, query, torch.zeros(3, 1, 50, 50), 0.0)  # added to the scores
    assert not is_short(query.to("meta"), query.to("meta"), None, 0.0)
    long = torch.zeros(1, 1, MOST_TOKENS + 1, 8, dtype=torch.bfloat16)
    assert not is_short(long, long, None, 0.0)


def test_a_model_computes_by_it_in_bfloat16_alone(monkeypatch):
    model, _ = make_clip()
    use_sliced_attention(model)
    vision, text = model.config.vision_config, model.config.text_config
    batch = {"pixel_values": torch.randn(4, 3, vision.image_size, vision.image_size)}
    batch["input_ids"] = torch.randint(3, text.vocab_size, (4, text.max_position_embeddings))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, 5:] = 0
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return short_attention(*args, **kwargs)

    monkeypatch.setattr("hf_clip_domain.models.attention.short_attention", counted)

    def gradients(autocast):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(**batch, return_loss=True).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact = gradients(False)
    assert not calls
    rounded = gradients(True)
    assert len(calls) == vision.num_hidden_layers + text.num_hidden_layers
    assert ((rounded - exact).norm() / exact.norm()).item() < 0.1
