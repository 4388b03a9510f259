"""Training at changing picture sizes: the size follows the step alone, and nothing else of the step changes."""

import pytest
import torch
import torch.nn.functional as F

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_positions import at_image_size, find_image_positions
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.affordable import affordable_sizes, candidates, pair_timer
from hf_clip_domain.training.callbacks.resolution import ResolutionSchedule
from hf_clip_domain.training.micro_batching import MicroBatches
from hf_clip_domain.training.token_level import TokenLevel


def arguments(folder, **settings):
    settings = {"max_steps": 8, "learning_rate": 1e-3, "logging_steps": 1, "monitor": False, **settings}
    return ClipTrainingArguments(
        str(folder), per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, report_to=[], seed=3, **settings
    )


def sizes(schedule, steps=20):
    return [schedule.at(step, steps) for step in range(steps)]


class Seen:
    """The pictures that the vision tower is given: rows and pixels of every call."""

    def __init__(self, model):
        self.calls = []
        model.vision_model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        self.calls.append((len(pixels), pixels.shape[-1]))


def train(folder, model, pairs, resume=None, **settings):
    trainer = ClipTrainer(model, arguments(folder, **settings), train_dataset=pairs(24))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same_weights(one, other):
    for first, second in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_each_schedule_is_what_it_says():
    assert sizes(ResolutionSchedule((96, 128, 224))) == 8 * [96] + 8 * [128] + 4 * [224]
    assert sizes(ResolutionSchedule((160,), "constant")) == 20 * [160]
    assert sizes(ResolutionSchedule((96, 224), "step", warmup=0.0)) == 20 * [224]
    linear = sizes(ResolutionSchedule((96, 224), "linear", 1.0, patch=16), 8)
    assert linear == [96, 112, 128, 144, 160, 176, 192, 208]
    cosine = sizes(ResolutionSchedule((96, 224), "cosine", 0.8, patch=16))
    for found in (linear, cosine):
        assert found == sorted(found) and all(size % 16 == 0 for size in found) and found[0] == 96
    assert cosine[16:] == 4 * [224] and cosine[8] == 160  # the middle of its way
    # The cosine stays small for longer, and goes faster between.
    straight = sizes(ResolutionSchedule((96, 224), "linear", 0.8, patch=16))
    assert cosine[3] < straight[3] and cosine[13] > straight[13]


def test_random_sizes_are_drawn_for_each_step_by_the_seed():
    schedule = ResolutionSchedule((96, 128, 224), "random", 1.0, seed=1)
    drawn = sizes(schedule, 300)
    assert drawn == sizes(schedule, 300) != sizes(ResolutionSchedule((96, 128, 224), "random", 1.0, seed=2), 300)
    assert all(70 < drawn.count(size) < 130 for size in schedule.sizes)
    state = torch.get_rng_state()
    schedule.at(5, 300)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_tower_sees_the_schedule_and_the_log_tells_it(tmp_path, clip, pairs):
    model = clip()
    seen = Seen(model)
    trainer = train(tmp_path, model, pairs, resolutions="8,16", resolution_warmup=0.5)
    assert seen.calls == 4 * [(8, 8)] + 4 * [(8, 16)]
    logged = [entry["resolution"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == 4 * [8] + 4 * [16]


def test_a_step_at_a_small_size_is_one_on_small_pictures(tmp_path, clip, batch):
    """Gradients as of a model that was made for the small size, but to the table, which learns through the map."""
    model, rows = clip(), batch(8)
    trainer = ClipTrainer(model, arguments(tmp_path, resolutions="8,16"))
    trainer.curriculum.size = 8
    model.train()
    trainer.compute_loss(model, trainer.curriculum.shrink(rows)).backward()

    class Processor:
        image_processor = type("Images", (), {"size": {"shortest_edge": 16}})()

    small, _ = at_image_size(clip(), Processor(), 8)
    pixels = F.interpolate(rows["pixel_values"], size=(8, 8), mode="bicubic", antialias=True)
    plain = ClipTrainer(small.train(), arguments(tmp_path))
    plain.compute_loss(small, {**rows, "pixel_values": pixels}).backward()
    gradients = {name: parameter.grad for name, parameter in small.named_parameters()}
    for name, parameter in model.named_parameters():
        if name == "vision_model.embeddings.position_embedding.weight":
            assert parameter.grad.shape == (5, 32) and (parameter.grad.abs().sum(dim=1) > 0).all()
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"resolution_schedule": "random"}, {"patch_dropout": 0.5, "micro_batch_size": 3}])
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(tmp_path, clip, pairs, settings):
    settings = {"resolutions": "8,16", "save_steps": 3, "save_total_limit": None, **settings}
    whole = train(tmp_path, clip(), pairs, **settings)
    again = train(tmp_path, clip(seed=7), pairs, f"{tmp_path}/checkpoint-3", **settings)
    assert_same_weights(whole, again)


@pytest.mark.slow
def test_workers_that_prepare_batches_ahead_change_nothing(tmp_path, clip, pairs):
    settings = {"resolutions": "8,16", "resolution_schedule": "random", "save_strategy": "no"}
    plain = train(tmp_path, clip(), pairs, **settings)
    ahead = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3}
    assert_same_weights(plain, train(tmp_path, clip(), pairs, **settings, **ahead))


def test_micro_batches_keep_their_tokens_and_the_batch_its_rows(tmp_path, clip, pairs):
    model = clip()
    seen = Seen(model)
    choices = {"resolutions": "8,16", "resolution_warmup": 0.5, "max_steps": 2, "save_strategy": "no"}
    level = train(tmp_path, model, pairs, micro_batch_size=4, **choices)
    # 4 rows of 4 patches and 12 words are 64 tokens; of 1 patch and 12 words, 4 rows are 52 and 5 are 65.
    assert set(seen.calls[:2]) == {(4, 8)} and set(seen.calls[-2:]) == {(4, 16)}
    whole = train(tmp_path, clip(), pairs, **choices)
    for one, other in zip(level.model.parameters(), whole.model.parameters(), strict=True):
        assert (one - other).abs().max() < 2e-3  # steps of Adam, to which rounding may give a sign
    rows = {"input_ids": torch.ones(8, 2), "pixel_values": torch.ones(8, 3, 8, 8)}
    plans = TokenLevel(clip(), 4)
    assert plans.plan(rows) == MicroBatches(8)  # 4 rows of 6 tokens, 8 of 3
    assert TokenLevel(clip(), 4, patch_dropout=0.5).plan(rows) == MicroBatches(6)  # 4 rows of 4, 6 of 2.5
    plans.learn(MicroBatches(4), rows)  # what a shortage left
    assert plans.rows == 2 and plans.plan(rows) == MicroBatches(4)
    assert plans.plan({**rows, "pixel_values": torch.ones(8, 3, 16, 16)}) == MicroBatches(2)


def test_automatic_micro_batches_are_sized_for_each_size(tmp_path, clip, pairs):
    trainer = train(
        tmp_path, clip(), pairs, resolutions="8,16", resolution_warmup=0.5, max_steps=2, micro_batch_size="auto"
    )
    model = trainer.steps.sizing.models
    sizes = {dict(key[1:])["pixel_values"][-1] for key in model}
    assert sizes == {8, 16}
    first, second = (model[key] for key in sorted(model, key=lambda key: dict(key[1:])["pixel_values"]))
    assert first.need(MicroBatches(None), 8) < second.need(MicroBatches(None), 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolutions": "16,8"}, "--resolutions 16,8: expected sizes in pixels from small to large"),
        ({"resolutions": "large"}, "--resolutions large"),
        ({"resolutions": [0]}, "--resolutions"),
        ({"resolutions": "8,16", "resolution_schedule": "constant"}, "constant trains at one size"),
        ({"resolutions": "8,16,24", "resolution_schedule": "linear"}, "give the first and the last"),
        ({"resolution_warmup": 1.5}, "--resolution_warmup 1.5"),
        ({"resolution_minutes": 0}, "--resolution_minutes 0"),
        ({"patch_dropout": 1}, "--patch_dropout 1"),
        ({"resolutions": "8,16", "image_sizes": [8, 16]}, "--image_sizes embeds at all its sizes in every step"),
        ({"resolutions": "auto", "feature_cache": "auto"}, "--feature_cache keeps features of whole pictures at one"),
        ({"patch_dropout": 0.5, "feature_cache": "auto"}, "--feature_cache .* leave out --patch_dropout"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, settings, message):
    with pytest.raises(ClipDomainError, match=message):
        arguments(tmp_path, **settings)


def test_a_model_of_another_size_is_refused_with_the_way_out(tmp_path, clip):
    with pytest.raises(
        ClipDomainError, match=r"end at 24 pixels, and the model is one for 16.*at_image_size\(.*, 24\)"
    ):
        ClipTrainer(clip(), arguments(tmp_path, resolutions="8,24"))
    with pytest.raises(ClipDomainError, match="pictures of 12 pixels cannot be cut into patches of 8: take 8 or 16"):
        ClipTrainer(clip(), arguments(tmp_path, resolutions="12,16"))
    with pytest.raises(ClipDomainError, match="12 pixels cannot be cut"):
        ClipTrainer(clip(), arguments(tmp_path, image_sizes=[12, 16]))
    with pytest.raises(ClipDomainError, match="--resolutions auto is for the command"):
        ClipTrainer(clip(), arguments(tmp_path, resolutions="auto"))


def test_auto_takes_the_largest_size_within_the_budget(tmp_path, clip):
    model = clip()  # 16 pixels in patches of 8
    assert candidates(model, most=100) == [32, 24, 16, 8] and candidates(model, most=20) == [16, 8]

    def chosen(minutes, seconds=lambda size, last: size**2, pairs=60, **settings):
        args = arguments(tmp_path, resolutions="auto", resolution_minutes=minutes, **settings)
        return affordable_sizes(args, model, [32, 24, 16, 8], seconds, pairs)

    # A run of 60 pairs, four fifths of them at some 4/7 of the size: minutes are 0.8 first^2 + 0.2 last^2.
    assert chosen(670).sizes == (24, 32) and chosen(670).minutes == pytest.approx(0.8 * 576 + 0.2 * 1024)
    assert chosen(660).sizes == (16, 24)
    assert chosen(1).sizes == (8,) and chosen(1).minutes == pytest.approx(64)  # none does: the smallest
    assert chosen(500, lambda size, last: float("inf") if size > 16 else 1.0).sizes == (16,)


def test_timing_a_pair_leaves_the_model_as_it_was(tmp_path, clip):
    class Processor:
        image_processor = type("Images", (), {"size": {"shortest_edge": 16}})()

    model = clip().eval()
    model.logit_scale.grad = torch.tensor(5.0)
    state = torch.get_rng_state()
    seconds = pair_timer(model, Processor(), arguments(tmp_path))
    assert 0 < seconds(16) < 1 and 0 < seconds(160)
    assert seconds(160) > 2 * seconds(16)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["logit_scale"]
    assert find_image_positions(model).size == 16
