"""A tower that gives no gradient is asked once, and what is remembered is what it would say."""

import copy

import pytest
import torch
from torch import nn

from hf_clip_domain.models.towers import model as towers_model
from hf_clip_domain.models.towers.memo import FeatureMemo, may_remember


class Tower(nn.Linear):
    """A tower of one layer that counts what it is asked."""

    class Config:
        def to_json_string(self, use_diff):
            return "{}"

    config = Config()

    def __init__(self):
        super().__init__(3, 2)
        self.asked = 0

    def of(self, rows):
        def compute(places):
            self.asked += len(places)
            return self(rows[places])

        return compute


@pytest.fixture
def fresh(monkeypatch):
    memo = FeatureMemo()
    monkeypatch.setattr(towers_model, "_MEMO", memo)
    return memo


def ask(memo, tower, rows):
    return memo.features(tower, rows.unbind(), tower.of(rows))


def test_only_new_rows_are_computed_in_their_places():
    memo, tower, rows = FeatureMemo(), Tower(), torch.randn(70, 3)
    torch.testing.assert_close(ask(memo, tower, rows[:40]), tower(rows[:40]))
    assert tower.asked == 40
    torch.testing.assert_close(ask(memo, tower, rows.flip(0)), tower(rows.flip(0)))
    assert tower.asked == 70 and len(memo) == 70


def test_changed_weights_are_asked_anew_and_equal_ones_are_not():
    memo, tower, rows = FeatureMemo(), Tower(), torch.randn(4, 3)
    before = ask(memo, tower, rows)
    other = copy.deepcopy(tower)
    torch.testing.assert_close(ask(memo, other, rows), before)
    other.load_state_dict({name: torch.lerp(value, value, 0.3) for name, value in tower.state_dict().items()})
    ask(memo, other, rows)
    assert other.asked == tower.asked == 4  # the copy's count began at the original's
    with torch.no_grad():
        other.weight.mul_(2)
    torch.testing.assert_close(ask(memo, other, rows), other(rows))
    assert other.asked == 8


def test_a_step_of_a_fused_optimizer_leaves_no_mark_and_is_noticed_all_the_same():
    tower, memo, rows = Tower(), FeatureMemo(), torch.randn(2, 3)
    memo.features(tower, list(rows), tower.of(rows))
    tower(rows).sum().backward()
    torch.optim.AdamW(tower.parameters(), lr=0.1, fused=True).step()
    with torch.no_grad():
        assert torch.equal(memo.features(tower, list(rows), tower.of(rows)), tower(rows))


def test_what_was_unused_longest_goes_first_and_the_budget_holds():
    memo, tower, rows = FeatureMemo(capacity_bytes=3 * 8), Tower(), torch.randn(4, 3)
    ask(memo, tower, rows[:3])
    ask(memo, tower, rows[:1])  # used again
    ask(memo, tower, rows[3:])
    asked = tower.asked
    ask(memo, tower, rows[:1])
    assert len(memo) == 3 and tower.asked == asked
    ask(memo, tower, rows[1:2])
    assert tower.asked == asked + 1


def test_nothing_is_remembered_where_a_gradient_or_chance_has_a_part(towers, batch):
    model, pixels = towers(), batch(2)["pixel_values"]
    assert not may_remember(model.vision_model, pixels)
    with torch.no_grad():
        assert may_remember(model.vision_model, pixels)
        model.text_model.train()
        assert may_remember(model.text_model, pixels)
        model.text_model.embeddings.dropout.p = 0.1
        assert not may_remember(model.text_model, pixels)
        assert not may_remember(model.vision_model, pixels.to("meta"))
    model.vision_model.requires_grad_(False)
    assert may_remember(model.vision_model, pixels)


def test_a_model_says_the_same_with_its_memo(towers, batch, fresh):
    model, inputs = towers(), batch(5)
    plain = model(**inputs)  # with gradients: nothing is kept
    assert len(fresh) == 0
    longer = {**inputs, "input_ids": nn.functional.pad(inputs["input_ids"], (0, 4))}
    longer["attention_mask"] = nn.functional.pad(inputs["attention_mask"], (0, 4))
    with torch.no_grad():
        for form in (inputs, inputs, longer):  # padding tells no texts apart
            again = model(**form)
            torch.testing.assert_close(again.image_embeds, plain.image_embeds)
            torch.testing.assert_close(again.text_embeds, plain.text_embeds)
    assert len(fresh) == 10


def test_heads_learn_the_same_from_remembered_features(towers, batch, fresh):
    gradients = []
    for frozen in (True, True, False):  # asked, remembered, neither
        model = towers()
        for tower in (model.vision_model, model.text_model):
            tower.requires_grad_(not frozen)
        model(**batch(4)).logits_per_image.diag().sum().backward()
        gradients.append(model.visual_projection.linear.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_what_was_met_in_inference_mode_can_be_trained_on(towers, batch, fresh):
    model, inputs = towers(), batch(2)
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    with torch.inference_mode():
        model(**inputs)
    model(**inputs).logits_per_image.sum().backward()
    assert len(fresh) == 4 and model.text_projection.linear.weight.grad.abs().sum() > 0
