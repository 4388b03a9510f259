"""Temperature schedules: their curves, their hold on the optimizer, and resuming."""

import math

import pytest
import torch

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import ClipTrainer


def train(folder, model, pairs, resume=None, **settings):
    settings = {
        "max_steps": 10,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 4,
        "save_total_limit": 3,
        **settings,
    }
    arguments = ClipTrainingArguments(
        str(folder), per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, save_strategy="steps", **settings
    )
    trainer = ClipTrainer(model, arguments, train_dataset=pairs(16))
    trainer.train(resume_from_checkpoint=resume)
    return trainer, [1 / entry["logit_scale"] for entry in trainer.state.log_history if "logit_scale" in entry]


OWN = 0.07  # of a new CLIPModel
CURVES = {
    "fixed": ({}, lambda p: OWN),
    "constant": ({"temperature": 0.2}, lambda p: 0.2),
    "warmup": ({"temperature": 0.2, "final_temperature": 0.05, "temperature_warmup": 0.5},
               lambda p: 0.2 - 0.15 * min(1, p / 0.5)),
    "cosine": ({"final_temperature": 0.02}, lambda p: 0.02 + (OWN - 0.02) * (1 + math.cos(math.pi * p)) / 2),
    "exponential": ({"temperature": 0.4, "final_temperature": 0.1}, lambda p: 0.4 * 0.25**p),
}  # fmt: skip


@pytest.mark.parametrize("kind", CURVES)
def test_curves(tmp_path, clip, pairs, kind):
    settings, curve = CURVES[kind]
    _, found = train(tmp_path, clip(), pairs, temperature_schedule=kind, **settings)
    assert found == pytest.approx([curve(step / 10) for step in range(10)], rel=1e-3)


def test_learned_is_clamped_and_begins_where_told(tmp_path, clip, pairs):
    trainer, found = train(tmp_path, clip(), pairs, temperature=0.011, learning_rate=0.1)
    assert found[0] == pytest.approx(0.011, rel=1e-3) and found[-1] != found[0]
    assert min(found) >= 0.01 - 1e-6 and trainer.model.logit_scale.requires_grad


def test_adaptive_brings_the_gap_to_its_goal(tmp_path, clip, pairs):
    trainer, _ = train(tmp_path, clip(), pairs, temperature_schedule="adaptive", temperature_gap=3.0, max_steps=300)
    last = [entry for entry in trainer.state.log_history if "similarity_gap" in entry][-20:]
    reached = sum(entry["similarity_gap"] * entry["logit_scale"] for entry in last) / 20
    assert reached == pytest.approx(3.0, rel=0.15)


@pytest.mark.parametrize("kind", ["cosine", "adaptive"])
def test_a_resumed_run_goes_on_with_the_same_temperatures(tmp_path, clip, pairs, kind):
    whole, temperatures = train(tmp_path, clip(), pairs, temperature_schedule=kind)
    again, resumed = train(tmp_path, clip(), pairs, f"{tmp_path}/checkpoint-4", temperature_schedule=kind)
    assert resumed[-6:] == temperatures[-6:]
    assert all(
        torch.equal(one, other) for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "--temperature -0.1: expected a number from 0.01 to 1"),
        ({"final_temperature": 2}, "--final_temperature 2"),
        ({"temperature_schedule": "constant"}, "constant needs --temperature"),
        ({"temperature_schedule": "fixed", "temperature": 0.1}, "'constant' takes --temperature"),
        ({"temperature_warmup": 0}, "--temperature_warmup 0"),
        ({"temperature_gap": 0}, "--temperature_gap 0"),
        ({"image_sizes": []}, "--image_sizes"),
        ({"loss_settings": "{a: "}, "--loss_settings is not valid YAML"),
        ({"loss_settings": "3"}, "--loss_settings 3: expected"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, message):
    with pytest.raises(ClipDomainError, match=message):
        ClipTrainingArguments(str(tmp_path), use_cpu=True, **settings)
