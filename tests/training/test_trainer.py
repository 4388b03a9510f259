"""The trainer's hooks, on real small models."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPModel, TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import build_loss
from hf_clip_domain.similarity import build_similarity
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.types import LossOutput


def arguments(folder, **settings):
    settings = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, **settings}
    return ClipTrainingArguments(str(folder), **settings)


class LogitScale:
    """An evaluator that reads a number off the model."""

    def __call__(self, model):
        return {"probe/score": -model.logit_scale.item(), "probe/mode": float(model.training)}


def test_training_learns_the_pairs(tmp_path, clip, pairs):
    trainer = ClipTrainer(
        clip(), arguments(tmp_path, num_train_epochs=12, learning_rate=3e-3, logging_steps=1), train_dataset=pairs(16)
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(8), rel=0.5)
    assert losses[-1] < 0.3 * losses[0]


def test_logs_carry_the_parts_of_the_loss(tmp_path, clip, pairs):
    trainer = ClipTrainer(clip(), arguments(tmp_path, max_steps=4, logging_steps=2), train_dataset=pairs(16))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    for entry in entries:
        mean = (entry["image_to_text_loss"] + entry["text_to_image_loss"]) / 2
        assert entry["loss"] == pytest.approx(mean, abs=1e-3)
        assert 1 <= entry["logit_scale"] <= 100.001


def test_logit_scale_is_learned_and_clamped(tmp_path, clip, pairs):
    model = clip()
    torch.nn.init.constant_(model.logit_scale, math.log(100) - 1e-4)
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.logit_scale.item())

    trainer = ClipTrainer(
        model,
        arguments(tmp_path, num_train_epochs=10, learning_rate=0.05, lr_scheduler_type="constant"),
        train_dataset=pairs(16),
        callbacks=[Watch()],
    )
    trainer.train()
    assert len(set(seen)) > 1 and max(seen) <= math.log(100) + 1e-6


def test_every_epoch_has_its_own_order_and_no_row_twice(tmp_path, clip, pairs):
    data, rows = pairs(16), []

    class Recorded(type(data)):
        def __getitem__(self, key):
            rows.append(divmod(key, len(self)))
            return super().__getitem__(key)

    data.__class__ = Recorded
    ClipTrainer(clip(), arguments(tmp_path, num_train_epochs=3), train_dataset=data).train()
    epochs = [[index for at, index in rows if at == epoch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_workers_give_the_same_training(tmp_path, clip, pairs):
    final = []
    for workers in (0, 2):
        settings = {"num_train_epochs": 2, "dataloader_num_workers": workers, "learning_rate": 1e-3}
        if workers:
            settings["dataloader_persistent_workers"] = True
        trainer = ClipTrainer(clip(), arguments(tmp_path / str(workers), **settings), train_dataset=pairs(24))
        trainer.train()
        final.append(trainer.model.state_dict())
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


def test_evaluators_drive_best_model_and_early_stopping(tmp_path, clip, pairs):
    trainer = ClipTrainer(
        clip(),
        arguments(
            tmp_path,
            num_train_epochs=10,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="probe/score",
            early_stopping_patience=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
        ),
        train_dataset=pairs(16),
        eval_dataset=pairs(8, seed=1),
        evaluators=[LogitScale()],
    )
    trainer.train()
    scores = {e["step"]: e["eval_probe/score"] for e in trainer.state.log_history if "eval_probe/score" in e}
    best = max(scores, key=scores.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert -trainer.model.logit_scale.item() == pytest.approx(scores[best], abs=1e-6)
    if len(scores) < 10:
        assert list(scores)[-1] == best + 4  # two evaluations of two steps without a better one


def test_evaluation_without_evaluators_is_the_loss_of_every_row(tmp_path, clip, pairs):
    trainer = ClipTrainer(clip(), arguments(tmp_path, per_device_eval_batch_size=8), eval_dataset=pairs(20))
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_loss"] < 5
    assert metrics["eval_samples_per_second"] > 0
    assert len(trainer.get_eval_dataloader()) == 3  # the last, smaller batch is scored too


def test_remove_unused_columns_keeps_what_the_collator_needs(tmp_path, clip, pairs):
    class Collator:
        columns = ("row",)

        def __call__(self, rows):
            whole = pairs(16).batch
            chosen = [row["row"] for row in rows]
            return {name: values[chosen] for name, values in whole.items()}

    data = [{"row": index, "junk": object()} for index in range(16)]
    trainer = ClipTrainer(
        clip(),
        arguments(tmp_path, max_steps=2, remove_unused_columns=True),
        train_dataset=data,
        data_collator=Collator(),
    )
    assert trainer.train().global_step == 2


def test_targets_are_positives_of_one_another(tmp_path, clip, batch):
    trainer = ClipTrainer(clip(), arguments(tmp_path))
    rows, ids = batch(8), torch.arange(4).repeat(2)
    output = trainer.model(**rows)
    embeds = output.image_embeds, output.text_embeds
    scale = trainer.model.logit_scale.exp()
    plain, grouped = (trainer.loss(*embeds, logit_scale=scale, targets=targets).loss for targets in (None, ids))
    assert trainer.compute_loss(trainer.model, rows).item() == pytest.approx(plain.item(), rel=1e-5)
    found = trainer.compute_loss(trainer.model, {**rows, "targets": ids})
    assert found.item() == pytest.approx(grouped.item(), rel=1e-5) and abs(found - plain) > 1e-3


def test_fewer_pairs_than_a_batch_is_an_error_with_the_option(tmp_path, clip, pairs):
    trainer = ClipTrainer(clip(), arguments(tmp_path, per_device_train_batch_size=32), train_dataset=pairs(20))
    with pytest.raises(ClipDomainError, match="--per_device_train_batch_size 20"):
        trainer.train()


def test_a_losss_own_parameters_train_and_leave_a_plain_model(tmp_path, clip, pairs):
    loss = build_loss("siglip", similarity="bilinear", positives={}, logit_bias=-3.0)
    trainer = ClipTrainer(clip(), arguments(tmp_path, learning_rate=1e-2), loss=loss, train_dataset=pairs(16))
    assert loss.similarity.weight.shape == (24, 24)
    trainer.train()
    assert loss.bias.item() != -3.0 and not torch.equal(loss.similarity.weight, torch.eye(24))
    trainer.save_model(tmp_path / "final")
    names = load_file(tmp_path / "final" / "model.safetensors")
    assert not any("contrastive_loss" in name for name in names)
    CLIPModel.from_pretrained(tmp_path / "final")
    assert trainer.model.contrastive_loss is loss  # further training goes on with it


def test_siglip_models_keep_their_own_bias(tmp_path, siglip, batch):
    model = siglip()
    trainer = ClipTrainer(model, arguments(tmp_path), loss=build_loss("siglip"))
    assert not hasattr(model, "contrastive_loss")
    rows = {name: rows for name, rows in batch(4).items() if name != "attention_mask"}
    trainer.compute_loss(model, rows).backward()
    assert model.logit_bias.grad.abs() > 0


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_similarities_that_need_lengths_get_embeddings_as_projected(tmp_path, clip, batch, similarity):
    model, rows = clip(), batch(6)
    trainer = ClipTrainer(
        model, arguments(tmp_path, micro_batch_size=4), loss=build_loss("info_nce", similarity=similarity)
    )
    image = model.get_image_features(pixel_values=rows["pixel_values"]).pooler_output
    text = model.get_text_features(rows["input_ids"], rows["attention_mask"]).pooler_output
    logits = model.logit_scale.exp() * build_similarity(similarity)(image, text)
    own = torch.arange(6)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert trainer.compute_loss(model, rows).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("micro", [None, 2])
def test_the_same_pairs_at_several_sizes_sum_up_in_one_loss(tmp_path, clip, batch, micro):
    model, rows = clip().double(), batch(5, dtype=torch.float64)
    settings = {"resolution_weights": [1, 3]}
    choices = {"image_sizes": [8, 16], "loss_settings": settings, "micro_batch_size": micro}
    trainer = ClipTrainer(model, arguments(tmp_path, **choices))
    model.train()
    text = F.normalize(model.get_text_features(rows["input_ids"], rows["attention_mask"]).pooler_output, dim=-1)
    expected = 0
    for size, weight in ((8, 0.25), (16, 0.75)):
        pixels = F.interpolate(rows["pixel_values"], size=(size, size), mode="bicubic", antialias=True)
        image = model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
        expected += (
            weight * build_loss("info_nce")(F.normalize(image, dim=-1), text, logit_scale=model.logit_scale.exp()).loss
        )
    found = trainer.compute_loss(model, rows)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    weights = [model.vision_model.embeddings.patch_embedding.weight, model.text_projection.weight]
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert (one - other).norm() < 1e-8 * other.norm()


def test_a_learned_loss_resumes_and_comes_back_with_the_best_model(tmp_path, clip, pairs):
    def run(folder, peft, resume=None, **settings):
        model = clip()
        if peft:
            targets = ["q_proj", "v_proj"]
            model = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
        choices = {"max_steps": 6, "save_steps": 2, "save_total_limit": 3, "learning_rate": 1e-2, "seed": 3, **settings}
        loss = build_loss("siglip", similarity="bilinear", logit_bias=-3.0)
        trainer = ClipTrainer(
            model,
            arguments(folder, **choices),
            loss=loss,
            train_dataset=pairs(16),
            evaluators=[Bias()],
            eval_dataset=pairs(4),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    class Bias:
        """Best at the first evaluation, so that its checkpoint has to come back."""

        def __call__(self, model):
            return {"probe/score": -abs(model.contrastive_loss.bias.item() + 3.0)}

    for peft in (False, True):
        folder = tmp_path / str(peft)
        whole = run(folder, peft)
        again = run(folder, peft, f"{folder}/checkpoint-2")
        assert whole.loss.bias.item() == again.loss.bias.item() != -3.0
        assert torch.equal(whole.loss.similarity.weight, again.loss.similarity.weight)
        best = {"load_best_model_at_end": True, "metric_for_best_model": "probe/score", "save_strategy": "steps"}
        best = run(tmp_path / f"best-{peft}", peft, eval_strategy="steps", eval_steps=2, **best)
        kept = best.state.best_metric
        assert -abs(best.loss.bias.item() + 3.0) == pytest.approx(kept, abs=1e-6)
        assert best.state.best_model_checkpoint.endswith("checkpoint-2")


def test_a_copy_of_the_model_computes_with_its_own_weights(tmp_path, clip, batch):
    trainer = ClipTrainer(clip(), arguments(tmp_path))
    twin = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.allclose(twin(**batch(2)).logits_per_image, trainer.model(**batch(2)).logits_per_image)


def test_a_model_made_anew_trains(tmp_path, clip, pairs):
    """As Trainer does with `model_init`, and in a hyperparameter search."""
    choices = {"max_steps": 2, "temperature_schedule": "constant", "temperature": 0.2}
    trainer = ClipTrainer(None, arguments(tmp_path, **choices), model_init=lambda: clip(), train_dataset=pairs(16))
    trainer.train()
    assert trainer.model.logit_scale.exp().item() == pytest.approx(5.0) and not trainer.model.logit_scale.requires_grad
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert names.count("TemperatureSchedule") == 1 and "ClampLogitScale" not in names


def test_weights_of_resolutions_fit_the_sizes_and_evaluation_has_one(tmp_path, clip, pairs):
    settings = {"loss_settings": {"resolution_weights": [1, 3]}}
    with pytest.raises(ClipDomainError, match="resolution_weights .1, 3. for --image_sizes None"):
        ClipTrainer(clip(), arguments(tmp_path, **settings))
    choices = {"image_sizes": [8, 16], "max_steps": 1, **settings}
    trainer = ClipTrainer(clip(), arguments(tmp_path, **choices), train_dataset=pairs(8), eval_dataset=pairs(8))
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_loss_without_a_gap_cannot_steer_the_temperature(tmp_path, clip, pairs):
    class Silent(torch.nn.Module):
        def forward(self, image_embeds, text_embeds, *, logit_scale, targets=None):
            return LossOutput((image_embeds - text_embeds).square().mean())

    choices = {"max_steps": 1, "temperature_schedule": "adaptive"}
    trainer = ClipTrainer(clip(), arguments(tmp_path, **choices), loss=Silent(), train_dataset=pairs(8))
    with pytest.raises(ClipDomainError, match="as 'similarity_gap'"):
        trainer.train()
