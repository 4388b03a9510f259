"""Training less than everything: adapters, frozen parts, rates by depth, averaged weights; and going on after a cut."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import CLIPConfig, CLIPModel, TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import build_loss
from hf_clip_domain.models.adapters import add_adapter
from hf_clip_domain.models.freezing import freeze
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.callbacks import WeightAverage

pytestmark = pytest.mark.usefixtures("one_thread")


def base(dropout=0.0):
    """Large in words, so that an adapter of its small layers stays below its three percent."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    size["attention_dropout"] = dropout
    text = {**size, "vocab_size": 2000, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
    vision = {**size, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config={**text, "pad_token_id": 0}, vision_config=vision, projection_dim=24))


def adapted(kind="lora", dropout=0.0):
    model = base(dropout)
    torch.manual_seed(1)
    return add_adapter(model, kind, rank=1, dropout=dropout)


def frozen(*words, dropout=0.0):
    model = base(dropout)
    freeze(model, words)
    return model


def trainer_of(model, folder, pairs=None, callbacks=(), loss=None, evaluators=(), **settings):
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        **settings,
    }
    arguments = ClipTrainingArguments(str(folder), **settings)
    data = None if pairs is None else pairs(24)
    more = {"evaluators": evaluators, "eval_dataset": None if pairs is None else pairs(4)}
    return ClipTrainer(model, arguments, train_dataset=data, callbacks=list(callbacks), loss=loss, **more)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


class Cut(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


WAYS = {
    "lora": (lambda: adapted(dropout=0.1), {}),
    "dora": (lambda: adapted("dora"), {}),
    "frozen": (lambda: frozen("vision", "text:1", dropout=0.1), {}),
    "depth": (base, {"layerwise_learning_rate_decay": 0.5}),
    "average": (base, {"ema_decay": 0.9}),
    "muon": (base, {"muon_ratio": 4.0, "layerwise_learning_rate_decay": 0.5}),
    "all together": (adapted, {"layerwise_learning_rate_decay": 0.5, "ema_decay": 0.9, "optim": "adafactor"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_equals_the_uninterrupted_one_bitwise(tmp_path, pairs, way):
    make, settings = WAYS[way]
    settings = {**settings, "micro_batch_size": 3, "seed": 3}
    whole = trainer_of(make(), tmp_path / "whole", pairs, **settings)
    start = weights(whole.model)
    whole.train()
    assert changed(start, weights(whole.model))
    trainer_of(make(), tmp_path / "cut", pairs, [Cut()], **settings).train()
    again = trainer_of(make(), tmp_path / "cut", pairs, **settings)
    assert again.train(resume_from_checkpoint=True).global_step == 6
    assert not changed(weights(whole.model), weights(again.model))
    rates = [[e["learning_rate"] for e in t.state.log_history if "learning_rate" in e] for t in (whole, again)]
    assert rates[0] == rates[1]


# Adapters


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_and_temperature_train_and_the_base_stays(tmp_path, pairs, kind):
    trainer = trainer_of(adapted(kind), tmp_path, pairs, micro_batch_size=3)
    before = weights(trainer.model)
    trainer.train()
    moved = changed(before, weights(trainer.model))
    expected = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert moved == expected and "base_model.model.logit_scale" in moved


def test_a_checkpoint_of_an_adapter_is_loaded_by_plain_peft(tmp_path, pairs, batch):
    trainer = trainer_of(adapted(), tmp_path, pairs)
    trainer.train()
    plain = PeftModel.from_pretrained(base(), tmp_path / "checkpoint-6").eval()
    trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(plain(**batch(3)).logits_per_image, trainer.model(**batch(3)).logits_per_image)


def test_the_best_adapter_comes_back_with_its_temperature_and_its_loss(tmp_path, pairs):
    seen = []

    def early(model):  # the first evaluation is the best
        seen.append((model.logit_scale.item(), model.contrastive_loss.bias.item()))
        return {"probe/score": -len(seen)}

    loss = build_loss("siglip", similarity="bilinear", logit_bias=-3.0)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "probe/score", "eval_strategy": "steps"}
    best |= {"eval_steps": 2, "save_strategy": "steps"}
    trainer = trainer_of(adapted(), tmp_path, pairs, loss=loss, evaluators=[early], **best)
    trainer.train()
    assert len(set(seen)) == 3
    found = trainer.model.get_base_model().logit_scale.item(), trainer.loss.bias.item()
    assert found == seen[0]


# Gradient checkpointing


def gradients(model, tmp_path, batch, loss=None, **settings):
    trainer = trainer_of(model, tmp_path, loss=loss, **settings)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.activation_checkpointing:
        model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    trainer.training_step(model, batch)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize(
    "make",
    [base, adapted, lambda: frozen("vision"), lambda: frozen("vision:1", "text")],
    ids=lambda make: make.__name__,
)
def test_gradient_checkpointing_changes_no_gradient(tmp_path, batch, micro, make):
    def shaken():
        model = make().double()
        torch.manual_seed(4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # which begin at zero, where lora_A has no gradient
                torch.nn.init.normal_(parameter)
        return model

    whole = batch(8, dtype=torch.float64)
    reference = gradients(shaken(), tmp_path, dict(whole))
    found = gradients(shaken(), tmp_path, dict(whole), gradient_checkpointing=True, micro_batch_size=micro)
    assert reference.keys() == found.keys() and all(
        grad.norm() > 0 for n, grad in reference.items() if "k_proj" not in n
    )
    for name, gradient in reference.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_gradient_checkpointing_trains_the_same(tmp_path, pairs):
    models = []
    for checkpointing in (False, True):
        settings = {"gradient_checkpointing": checkpointing, "micro_batch_size": 3}
        trainer = trainer_of(adapted(), tmp_path / str(checkpointing), pairs, **settings)
        trainer.train()
        models.append(weights(trainer.model))
        assert trainer.model.get_base_model().is_activation_checkpointing == checkpointing
    for name in models[0]:
        torch.testing.assert_close(*(model[name] for model in models), rtol=1e-4, atol=1e-5)


def test_reentrant_checkpointing_is_refused(tmp_path):
    with pytest.raises(ClipDomainError, match="use_reentrant"):
        ClipTrainingArguments(str(tmp_path), gradient_checkpointing_kwargs={"use_reentrant": True})


# Rates by depth


@pytest.mark.parametrize("make", [base, adapted], ids=["whole", "lora"])
def test_every_parameter_learns_at_the_rate_of_its_depth(tmp_path, make):
    settings = {"layerwise_learning_rate_decay": 0.5, "weight_decay": 0.1, "learning_rate": 1e-3}
    loss = build_loss("siglip", similarity="bilinear", logit_bias=-3.0)
    trainer = trainer_of(make(), tmp_path, loss=loss, **settings)
    plain_trainer = trainer_of(make(), tmp_path, weight_decay=0.1)
    optimizer, plain = trainer.create_optimizer(), plain_trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rates)
    assert rates.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        if name.startswith("contrastive_loss"):
            expected = 1e-2  # --loss_learning_rate
        elif "layers.0." in name:
            expected = 1e-3 * 0.25
        elif "layers.1." in name:
            expected = 1e-3 * 0.5
        elif "embeddings" in name or "pre_layrnorm" in name:
            expected = 1e-3 * 0.125
        else:
            assert any(word in name for word in ("projection", "post_layernorm", "final_layer_norm", "logit_scale"))
            expected = 1e-3
        assert rate == pytest.approx(expected), name
    theirs = {p: name for name, p in plain_trainer.model.named_parameters()}
    for group in plain.param_groups:
        for parameter in group["params"]:
            assert decays[theirs[parameter]] == group["weight_decay"]
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_rates_by_depth_follow_the_schedule_and_the_highest_is_logged(tmp_path, pairs, optim):
    settings = {"layerwise_learning_rate_decay": 0.5, "logging_steps": 1, "optim": optim, "max_steps": 4}
    trainer = trainer_of(base(), tmp_path, pairs, lr_scheduler_type="linear", **settings)
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    groups = trainer.optimizer.param_groups
    assert {round(group["initial_lr"] / 1e-2, 6) for group in groups} == {1, 0.5, 0.25, 0.125}


# Optimizers


def test_adafactor_learns(tmp_path, pairs):
    trainer = trainer_of(base(), tmp_path, pairs, optim="adafactor", logging_steps=1, max_steps=20, learning_rate=3e-3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


def test_a_missing_optimizer_is_one_sentence(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    trainer = trainer_of(base(), tmp_path, pairs, optim="adamw_bnb_8bit")
    with pytest.raises(ClipDomainError, match="--optim adamw_bnb_8bit: .*pip install -U bitsandbytes"):
        trainer.train()


# Averaged weights


def test_the_average_is_its_recurrence_and_becomes_the_model(tmp_path, pairs):
    seen, scores = [], []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.append({name: p.detach().double().clone() for name, p in model.named_parameters()})

        on_step_end = on_train_begin

    def probe(model):
        scores.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"probe/score": 0.0}

    settings = {"ema_decay": 0.4, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 8}
    trainer = trainer_of(base(), tmp_path, pairs, [Watch()], evaluators=[probe], **settings)
    trainer.train()
    average, averages = dict(seen[0]), []
    for step, now in enumerate(seen[1:], start=1):
        decay = min(0.4, (1 + step) / (10 + step))  # the warm-up ends within the run
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
        averages.append(average)
    for found, step in ((scores[0], 5), (dict(trainer.model.named_parameters()), 8)):
        for name in average:
            torch.testing.assert_close(found[name].double(), averages[step - 1][name], rtol=1e-5, atol=1e-7)
    untouched = trainer_of(base(), tmp_path / "plain", pairs, max_steps=8)
    untouched.train()
    for name, value in untouched.model.named_parameters():  # the weights that train never see the average
        assert torch.equal(value.detach().double(), seen[-1][name])


def test_the_average_of_an_adapter_costs_what_trains(tmp_path, pairs):
    class Size(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            Size.numbers = sum(weight.numel() for weight in trainer.average.weights.values())

    trainer = trainer_of(adapted(), tmp_path, pairs, [Size()], ema_decay=0.9)
    trainer.train()
    assert Size.numbers == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert trainer.average.weights is None


def test_the_best_model_is_the_average_that_was_best(tmp_path, pairs):
    seen = []

    def probe(model):
        seen.append(weights(model))
        return {"probe/score": -len(seen)}

    best = {"load_best_model_at_end": True, "metric_for_best_model": "probe/score", "eval_strategy": "steps"}
    best |= {"eval_steps": 2, "save_strategy": "steps", "ema_decay": 0.9}
    trainer = trainer_of(base(), tmp_path, pairs, evaluators=[probe], **best)
    trainer.train()
    assert changed(seen[0], seen[1]) and not changed(seen[0], weights(trainer.model))


def test_weights_come_back_when_an_evaluation_fails():
    model, average = base(), WeightAverage(0.5)
    average.weights = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    before = weights(model)
    with pytest.raises(KeyError), average.in_place(model):
        assert not any(parameter.any() for parameter in model.parameters())
        raise KeyError
    assert not changed(before, weights(model))


def test_a_checkpoint_without_average_is_not_gone_on_with(tmp_path, pairs):
    trainer_of(base(), tmp_path, pairs).train()
    with pytest.raises(ClipDomainError, match="written without --ema_decay"):
        trainer_of(base(), tmp_path, pairs, ema_decay=0.9, max_steps=8).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layerwise_learning_rate_decay": 0.0}, "--layerwise_learning_rate_decay 0.0"),
        ({"layerwise_learning_rate_decay": 1.5}, "at most 1"),
        ({"ema_decay": 1.0}, "--ema_decay 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(ClipDomainError, match=message):
        ClipTrainingArguments(str(tmp_path), **settings)


def test_checkpoints_hold_the_average_under_their_seal(tmp_path, pairs):
    trainer_of(adapted(), tmp_path, pairs, ema_decay=0.9).train()
    assert "average.safetensors" in json.loads((tmp_path / "checkpoint-6" / "checksums.json").read_text())
