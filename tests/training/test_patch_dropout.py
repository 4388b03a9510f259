"""A share of the patches in training and all of them in evaluation; drawn so that nothing that repeats a step differs."""

import pytest
import torch

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.models.freezing import freeze
from hf_clip_domain.models.image_positions import at_image_size
from hf_clip_domain.models.patch_dropout import install_patch_dropout
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.micro_batching import install_embedding_forward
from hf_clip_domain.training.replay import StepReplay


class Tokens:
    """How many tokens the first layer of the vision tower is given."""

    def __init__(self, model):
        self.counts = []
        model.vision_model.encoder.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: self.counts.append((*args, *kwargs.values())[0].shape[1]), with_kwargs=True
        )


@pytest.mark.parametrize("kind", ["clip", "siglip", "frozen"])
def test_patches_are_left_out_in_training_alone(clip, siglip, batch, kind):
    model = siglip() if kind == "siglip" else clip()
    if kind == "frozen":  # whose embeddings stay in evaluation mode
        freeze(model, ["vision:1"])
    tokens, pixels = Tokens(model), batch(3)["pixel_values"]
    model.eval()
    whole = model.get_image_features(pixel_values=pixels).pooler_output
    install_patch_dropout(model, 0.5)
    assert torch.equal(model.get_image_features(pixel_values=pixels).pooler_output, whole)
    model.train()
    model.get_image_features(pixel_values=pixels)
    install_patch_dropout(model, 0.99)  # in place of the other; one patch remains
    model.get_image_features(pixel_values=pixels)
    install_patch_dropout(model, 0.0)
    model.get_image_features(pixel_values=pixels)
    others = 0 if kind == "siglip" else 1
    assert tokens.counts == [4 + others, 4 + others, 2 + others, 1 + others, 4 + others]


def test_kept_patches_are_the_pictures_own_with_their_positions(clip, batch):
    """Every picture draws for itself, each patch as often, and the class token stays."""
    model = clip().train()
    embeddings, pixels = model.vision_model.embeddings, batch(400)["pixel_values"]
    whole = embeddings(pixels)  # (400, 5, 32)
    install_patch_dropout(model, 0.5)
    kept = embeddings(pixels)  # (400, 3, 32)
    assert torch.equal(kept[:, 0], whole[:, 0])
    same = (kept[:, 1:, None] == whole[:, None, 1:]).all(dim=-1)  # (400, 2, 4): which patch each of the kept ones is
    assert (same.sum(dim=2) == 1).all() and (same.sum(dim=1) <= 1).all()
    assert ((same.sum(dim=(0, 1)) - 200).abs() < 40).all()


@pytest.mark.parametrize("size", [1, 3])
def test_recomputed_micro_batches_draw_the_same_patches(clip, batch, size):
    model = clip().train()
    install_embedding_forward(model)
    install_patch_dropout(model, 0.5)
    gradients = []
    for kept in (1, 8):  # recomputed, and not
        torch.manual_seed(5)
        outputs = model(**batch(7), micro_batch_size=size, kept=kept)
        loss = (outputs["image_embeds"] @ outputs["text_embeds"].T).square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.vision_model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_that_is_run_again_draws_the_same_patches(tmp_path, clip, pairs, monkeypatch):
    def train(failing):
        arguments = ClipTrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, max_steps=4, use_cpu=True, disable_tqdm=True, seed=3,
            save_strategy="no", monitor=False, report_to=[], patch_dropout=0.5, micro_batch_size=3,
        )  # fmt: skip
        trainer = ClipTrainer(clip(), arguments, train_dataset=pairs(24))
        calls = []

        def fail_sometimes(*_):
            calls.append(None)
            if failing and len(calls) in (2, 9):
                raise torch.OutOfMemoryError("CUDA out of memory.")

        trainer.model.vision_model.encoder.layers[1].register_forward_hook(fail_sometimes)
        trainer.train()
        return trainer

    # Smaller micro-batches draw otherwise; here those of the same size are tried again.
    monkeypatch.setattr(StepReplay, "_halved", lambda self, rows, reason: self.plan)
    smooth, rough = train(False), train(True)
    assert (smooth.steps.replay.shortages, rough.steps.replay.shortages) == (0, 2)
    for one, other in zip(smooth.model.parameters(), rough.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_copy_of_another_size_is_not_affected(clip, batch):
    class Processor:
        image_processor = type("Images", (), {"size": {"shortest_edge": 16}})()

    model = clip().train()
    install_patch_dropout(model, 0.5)
    copy, _ = at_image_size(model, Processor(), 32)
    tokens = Tokens(copy)
    copy.eval()
    copy.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32))
    assert tokens.counts == [17] and model.training
