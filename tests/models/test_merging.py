"""Weights between checkpoints and means of several."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from hf_clip_domain import merge_weights
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.merging import greedy_soup, uniform_soup


def make_clip(seed=0, layers=1, positions=16):
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    text = {**size, "vocab_size": 99, "max_position_embeddings": positions, "eos_token_id": 98}
    vision = {**size, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_ends_are_base_and_tuned_bit_for_bit_and_nothing_is_shared():
    base, tuned = make_clip(0), make_clip(1)
    assert equal(merge_weights(base, tuned, 0), base.state_dict())
    merged = merge_weights(base, tuned, 1)
    assert equal(merged, tuned.state_dict())
    merged["logit_scale"] += 1
    assert not equal(merged, tuned.state_dict())


def test_between_every_tensor_is_the_straight_line_and_a_model_loads_it():
    base, tuned = make_clip(0), make_clip(1)
    tuned.logit_scale.data.fill_(4.0)
    merged = merge_weights(base, tuned, 0.25)
    for name, value in base.state_dict().items():
        torch.testing.assert_close(merged[name], 0.75 * value + 0.25 * tuned.state_dict()[name])
    assert merged["logit_scale"] == pytest.approx(0.75 * base.logit_scale.item() + 1.0)
    base.load_state_dict(merged)
    # Half of the way of half of the way is a quarter.
    half = merge_weights(make_clip(0), tuned, 0.5)
    again = merge_weights(make_clip(0), half, 0.5)
    assert all(torch.allclose(again[name], merged[name], atol=1e-6) for name in merged)


def test_half_precision_is_mixed_in_single_and_kept():
    base, tuned = make_clip(0).half(), make_clip(1).half()
    merged, exact = merge_weights(base, tuned, 0.3), merge_weights(base.float(), tuned.float(), 0.3)
    assert all(merged[name].dtype == torch.float16 and torch.equal(merged[name], exact[name].half()) for name in exact)


def test_what_does_not_fit_is_named():
    with pytest.raises(
        ClipDomainError, match="different architectures: 32 tensors stand in one alone, such as text_mod"
    ):
        merge_weights(make_clip(), make_clip(layers=2), 0.5)
    with pytest.raises(ClipDomainError, match=r"position_embedding.weight \(16, 32\) and \(20, 32\).*max_text_length"):
        merge_weights(make_clip(), make_clip(positions=20), 0.5)
    with pytest.raises(ClipDomainError, match="alpha is 1.5"):
        merge_weights(make_clip(), make_clip(), 1.5)
    counter = {"steps": torch.tensor(3)}
    assert merge_weights(counter, {"steps": torch.tensor(3)}, 0.5) == counter
    with pytest.raises(ClipDomainError, match="steps differs"):
        merge_weights(counter, {"steps": torch.tensor(4)}, 0.5)


def test_an_adapter_counts_as_the_model_it_makes_and_goes_on_training():
    peft = pytest.importorskip("peft")
    base, adapted = make_clip(), make_clip()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(adapted, config)
    pixels, ids = torch.randn(2, 3, 16, 16), torch.tensor([[1, 2, 98], [3, 4, 98]])
    with torch.no_grad():
        expected = wrapped.eval()(pixel_values=pixels, input_ids=ids).logits_per_image
        merged = merge_weights(base, wrapped, 1)
        assert not equal(merged, base.state_dict())
        base.load_state_dict(merged)
        found = base(pixel_values=pixels, input_ids=ids).logits_per_image
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert any("lora_" in name for name, _ in wrapped.named_parameters())


def test_a_uniform_soup_is_the_mean_whatever_the_order():
    models = [make_clip(seed) for seed in range(3)]
    soup, turned = uniform_soup(models), uniform_soup(models[::-1])
    for name, value in soup.items():
        mean = sum(model.state_dict()[name] for model in models) / 3
        torch.testing.assert_close(value, mean)
        torch.testing.assert_close(value, turned[name])
    assert equal(uniform_soup(models[:1]), models[0].state_dict())


@pytest.mark.parametrize("seed", range(4))
def test_a_greedy_soup_is_never_worse_than_its_best_member(seed):
    torch.manual_seed(seed)
    goal, members = torch.zeros(6), [{"weight": torch.randn(6)} for _ in range(5)]

    def score(weights):
        return -(weights["weight"] - goal).norm().item()

    soup, chosen = greedy_soup(members, score)
    alone = [score(member) for member in members]
    assert chosen[0] == alone.index(max(alone)) and score(soup) >= max(alone)
    torch.testing.assert_close(soup["weight"], uniform_soup([members[index] for index in chosen])["weight"])


def test_a_greedy_soup_leaves_out_what_harms_and_takes_what_helps():
    members = [{"weight": torch.tensor([value])} for value in (1.0, -0.9, 50.0)]
    soup, chosen = greedy_soup(members, lambda weights: -abs(weights["weight"].item()))
    assert chosen == [1, 0] and soup["weight"].item() == pytest.approx(0.05)
    with pytest.raises(ClipDomainError, match="at least one"):
        greedy_soup([], lambda weights: 0.0)
