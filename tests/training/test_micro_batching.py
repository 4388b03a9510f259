"""Micro-batches change memory, never the gradient."""

import pytest
import torch
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.micro_batching import by_length


def gradients(model, batches, tmp_path, **settings):
    """Gradients after `training_step` on every batch, and the first batch's loss."""
    model.zero_grad()
    arguments = ClipTrainingArguments(str(tmp_path), use_cpu=True, **settings)
    trainer = ClipTrainer(model, arguments)
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.create_optimizer()
    if arguments.bf16:
        model = trainer.accelerator.prepare(model)
    losses = [trainer.training_step(model, dict(batch)) for batch in batches]
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads, losses


def relative_error(grads, reference):
    assert grads.keys() == reference.keys() and grads
    flat = torch.cat([grads[name].flatten() for name in reference]).double()
    expected = torch.cat([reference[name].flatten() for name in reference]).double()
    assert expected.norm() > 0
    return ((flat - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", [1, 3, 8, 23])
def test_gradient_equals_full_batch_in_fp32(clip, batch, tmp_path, size):
    model, whole = clip(), [batch(24)]
    reference, _ = gradients(model, whole, tmp_path)
    grads, _ = gradients(model, whole, tmp_path, micro_batch_size=size)
    assert "logit_scale" in grads
    assert relative_error(grads, reference) < 1e-5


def test_of_many_micro_batches_one_tower_at_a_time_is_in_memory(clip, batch, tmp_path, monkeypatch):
    model, counts = clip().double(), {"vision": 0, "text": 0}
    for tower in counts:
        layer = getattr(model, f"{tower}_model").encoder.layers[0]
        layer.register_forward_hook(lambda *_, tower=tower: counts.update({tower: counts[tower] + 1}))
    reference, _ = gradients(model, [batch(24, dtype=torch.float64)], tmp_path)
    for size, expected in ((2, {"vision": 23, "text": 23}), (1, {"vision": 48, "text": 47})):
        counts.update(vision=0, text=0)
        grads, _ = gradients(model, [batch(24, dtype=torch.float64)], tmp_path, micro_batch_size=size)
        assert counts == expected
        assert relative_error(grads, reference) < 1e-10


def of_all_lengths(whole, longest=12):
    """The same captions, ending at 3 to `longest` tokens and padded behind."""
    ids, mask = whole["input_ids"].clone(), whole["attention_mask"].clone()
    for row in range(len(ids)):
        end = 3 + 7 * row % (longest - 2)
        ids[row, end - 1], ids[row, end:], mask[row, end:] = 98, 0, 0
    return {**whole, "input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(("size", "widths"), [(6, [8, 8, 12, 12]), (9, [8, 12, 12]), (24, [12])])
def test_captions_of_like_length_share_a_micro_batch(clip, batch, tmp_path, size, widths):
    model, whole = clip().double(), of_all_lengths(batch(24, dtype=torch.float64))
    reference, loss = gradients(model, [whole], tmp_path)
    seen = []
    handle = model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    grads, same = gradients(model, [whole], tmp_path, micro_batch_size=size)
    handle.remove()
    assert seen[: len(widths)] == widths
    assert relative_error(grads, reference) < 1e-10
    torch.testing.assert_close(loss, same, rtol=1e-10, atol=0)


def test_the_length_of_a_caption_goes_to_its_last_token():
    mask = torch.zeros(5, 20, dtype=torch.int64)
    mask[0, :3], mask[1, :9], mask[2, :16], mask[4, 10:] = 1, 1, 1, 1  # row 3: padding alone; row 4: padded on the left
    order, lengths = by_length(mask)
    assert order.tolist() == [0, 1, 2, 3, 4] and lengths == [8, 16, 16, 20, 20]


def test_gradient_equals_full_batch_in_float64(clip, batch, tmp_path):
    model, whole = clip().double(), [batch(24, dtype=torch.float64)]
    reference, _ = gradients(model, whole, tmp_path)
    grads, _ = gradients(model, whole, tmp_path, micro_batch_size=5)
    assert relative_error(grads, reference) < 1e-10


def test_gradient_equals_full_batch_with_accumulation(clip, batch, tmp_path):
    model, batches = clip(), [batch(16, seed=1), batch(16, seed=2)]
    accumulate = {"gradient_accumulation_steps": 2}
    reference, losses = gradients(model, batches, tmp_path, **accumulate)
    grads, micro_losses = gradients(model, batches, tmp_path, micro_batch_size=5, **accumulate)
    assert relative_error(grads, reference) < 1e-5
    # And accumulation is the mean over contrastive batches, not a sum.
    single, _ = gradients(model, batches[:1], tmp_path)
    other, _ = gradients(model, batches[1:], tmp_path)
    mean = {name: (single[name] + other[name]) / 2 for name in single}
    assert relative_error(grads, mean) < 1e-5
    torch.testing.assert_close(torch.stack(losses), torch.stack(micro_losses), rtol=1e-5, atol=1e-6)


def test_gradient_equals_full_batch_with_frozen_parts(clip, batch, tmp_path):
    model, whole = clip(), [batch(24)]
    model.vision_model.requires_grad_(False)
    reference, _ = gradients(model, whole, tmp_path)
    grads, _ = gradients(model, whole, tmp_path, micro_batch_size=7)
    assert not any(name.startswith("vision_model") for name in grads)
    assert relative_error(grads, reference) < 1e-5


def test_gradient_equals_full_batch_with_lora(clip, batch, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(clip(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    whole = [batch(24)]
    reference, _ = gradients(model, whole, tmp_path)
    grads, _ = gradients(model, whole, tmp_path, micro_batch_size=7)
    assert all("lora_" in name for name in grads)
    assert relative_error(grads, reference) < 1e-5


def test_gradient_equals_full_batch_under_bf16_autocast(clip, batch, tmp_path):
    whole = [batch(24)]
    exact, _ = gradients(clip(), whole, tmp_path)
    reference, _ = gradients(clip(), whole, tmp_path, bf16=True)
    grads, _ = gradients(clip(), whole, tmp_path, bf16=True, micro_batch_size=7)
    rounding = relative_error(reference, exact)
    assert 1e-4 < rounding < 0.1, "autocast was not active"
    assert relative_error(grads, reference) < rounding


def test_same_gradient_for_every_dual_encoder(clip, siglip, batch, tmp_path):
    parts = clip(seed=3).config
    torch.manual_seed(0)
    dual = VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig(
            vision_config=parts.vision_config.to_dict(), text_config=parts.text_config.to_dict(), projection_dim=16
        )
    )
    for model in (siglip(), dual):
        reference, _ = gradients(model, [batch(10)], tmp_path)
        grads, _ = gradients(model, [batch(10)], tmp_path, micro_batch_size=4)
        assert relative_error(grads, reference) < 1e-5


def test_accumulating_small_batches_is_another_objective(clip, batch, tmp_path):
    """Why micro-batches are not gradient accumulation: the negatives would be lost."""
    model, whole = clip(), batch(24)
    reference, _ = gradients(model, [whole], tmp_path)
    pieces = [{name: rows[start : start + 4] for name, rows in whole.items()} for start in range(0, 24, 4)]
    grads, _ = gradients(model, pieces, tmp_path, gradient_accumulation_steps=6)
    assert relative_error(grads, reference) > 0.1


def test_the_model_keeps_its_ordinary_call(clip, batch, tmp_path):
    model = clip()
    expected = clip()(**batch(4), return_loss=True).loss
    ClipTrainer(model, ClipTrainingArguments(str(tmp_path), use_cpu=True, micro_batch_size=2))
    output = model(**batch(4), return_loss=True)
    assert torch.equal(output.loss, expected) and output.logits_per_image.shape == (4, 4)


def test_a_model_that_is_no_dual_encoder_is_refused(clip, batch, tmp_path):
    model = clip().vision_model
    model.logit_scale = torch.nn.Parameter(torch.zeros(()))
    trainer = ClipTrainer(model, ClipTrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ClipDomainError, match="image_embeds"):
        trainer.training_step(model, {"pixel_values": batch(2)["pixel_values"]})
