"""Micro-batches by memory: what is predicted is what is taken, and the plan follows the room that is left."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hf_clip_domain import memory
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.memory_model import LiveTensors, MemoryModel
from hf_clip_domain.training.micro_batching import MicroBatches

ROW = 100  # bytes of activations a row in the model below
MODEL = MemoryModel(first=((0, ROW),), again=((0, ROW),), held=ROW, gradients=1_000, loss=1)


def test_tensors_are_counted_while_they_live():
    with LiveTensors() as tensors:
        first = torch.zeros(1000)  # 4,000 bytes
        view, second = first[:10], first + 1
        assert tensors.live == 8_000
        del first
        assert tensors.live == 8_000  # the view holds it
        del view
        assert tensors.live == 4_000
        second.add_(1)
        assert tensors.live == 4_000 and max(tensors.history) == 8_000
        weight = torch.ones(1000, requires_grad=True)
        (checkpoint(lambda w: w.exp().sin(), weight, use_reentrant=False)).sum().backward()
        assert weight.grad is not None and tensors.live == 4_000 + 8_000  # second, weight and its gradient


@pytest.mark.parametrize(
    ("rows", "room", "expected"),
    [
        (8, 10_000, MicroBatches(None)),
        (8, 808, MicroBatches(None)),
        # Gradients and one micro-batch at least; of what is left as many as possible are kept.
        (100, 5_000, MicroBatches(10, 4)),
        (100, 1_400, MicroBatches(1, 5)),
        (100, 0, MicroBatches(1, 1)),
    ],
)
def test_the_room_is_used_and_not_exceeded(rows, room, expected):
    plan = MODEL.plan(rows, room)
    assert plan == expected
    assert plan == MicroBatches(1, 1) or MODEL.need(plan, rows) <= room


def test_every_room_is_used_as_far_as_a_micro_batch():
    for rows in (5, 64, 100, 1000):
        for room in range(1_200, 12_000, 700):
            plan = MODEL.plan(rows, room)
            held = plan.rows_held(rows)
            assert MODEL.need(plan, rows) <= room
            if held < rows:
                assert MODEL.need(MicroBatches(plan.size, plan.kept + 1), rows) > room
                assert held >= 0.7 * (room - 1_000) / ROW - 1


@pytest.fixture
def trainer(tmp_path, clip):
    arguments = ClipTrainingArguments(str(tmp_path), use_cpu=True, micro_batch_size="auto", monitor=False)
    trainer = ClipTrainer(clip(dropout=0.2), arguments)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def with_room(monkeypatch, trainer, room):
    monkeypatch.setattr(memory, "room", lambda device: room)
    trainer.steps.sizing.on_step_begin(None, None, None)


def test_probing_leaves_no_trace(trainer, batch):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    trainer.model.logit_scale.grad = torch.tensor(2.0)
    found = trainer._fit_memory({**batch(8), "targets": {"caption": torch.arange(8)}})
    assert torch.equal(torch.get_rng_state(), before)
    assert [name for name, p in trainer.model.named_parameters() if p.grad is not None] == ["logit_scale"]
    assert trainer.model.logit_scale.grad == 2
    assert found.held > 0 and found.loss > 0
    assert found.gradients == sum(p.nbytes for p in trainer.model.parameters())


def test_the_prediction_is_what_a_step_takes(trainer, batch):
    """Counted by the same means over the whole step, in every kind of plan."""
    inputs = batch(32)
    model = trainer._fit_memory(inputs)
    for plan in (MicroBatches(None), MicroBatches(16), MicroBatches(4), MicroBatches(4, 4), MicroBatches(1, 20)):
        trainer.model.zero_grad()
        with LiveTensors() as tensors:
            image, text = _embed(trainer, inputs, plan)
            trainer.loss(image, text, logit_scale=torch.tensor(10.0)).loss.backward()
        assert model.need(plan, 32) == pytest.approx(max(tensors.history), rel=0.2), plan


def _embed(trainer, inputs, plan):
    output = trainer.model(**inputs, micro_batch_size=plan.size, kept=plan.kept)
    return output["image_embeds"], output["text_embeds"]


def test_the_plan_shrinks_at_once_and_grows_when_there_is_clearly_more(trainer, batch, monkeypatch):
    told = []
    trainer.steps.replay.tell = lambda kind, sentence: told.append((kind, sentence))
    sizing, inputs = trainer.steps.sizing, batch(64)
    model = trainer._fit_memory(inputs)
    need = model.need(MicroBatches(None), 64)
    held = []
    for number, share in enumerate((2.0, 0.6, 0.65, 0.3, 2.0)):
        with_room(monkeypatch, trainer, int(share * need / 0.9))
        sizing.choose(inputs, number)
        held.append(trainer.steps.replay.plan.rows_held(64))
    assert held[0] == held[4] == 64
    assert held[1] == held[2] < 64 and held[3] < held[1]  # a little more room is no reason
    assert len(told) == 4 and all(kind is None for kind, _ in told)
    assert "0 of 64 rows embedded twice" in told[-1][1]


def test_a_shape_is_probed_once_and_a_smaller_one_only_where_memory_is_tight(trainer, batch, monkeypatch):
    probed, fit = [], trainer.steps.sizing.fit
    trainer.steps.sizing.fit = lambda inputs: probed.append(inputs["input_ids"].shape[1]) or fit(inputs)
    with_room(monkeypatch, trainer, 2**40)
    for number, length in enumerate((10, 10, 8, 12, 9, 12)):
        trainer.steps.sizing.choose(batch(16, length=length), number)
    assert probed == [10, 12]
    with_room(monkeypatch, trainer, int(trainer._fit_memory(batch(16)).need(MicroBatches(None), 16)))
    trainer.steps.sizing.choose(batch(16, length=7), 7)
    assert probed == [10, 12, 7]


def test_where_the_probe_does_not_fit_one_row_at_a_time_is_tried(trainer, batch, monkeypatch):
    def refuse_several(module, arguments):
        if len(arguments[0]) > 1:
            raise MemoryError

    trainer.model.text_model.encoder.layers[0].register_forward_pre_hook(refuse_several)
    with_room(monkeypatch, trainer, 2**40)
    trainer.training_step(trainer.model, batch(8))
    assert trainer.steps.replay.plan == MicroBatches(1) and trainer.steps.replay.shortages == 0
    assert all(p.grad is not None for p in trainer.model.parameters())


def test_after_a_shortage_nothing_grows_for_a_while(trainer, batch, monkeypatch):
    inputs = batch(64)
    with_room(monkeypatch, trainer, 2**40)
    trainer.steps.sizing.choose(inputs, 0)
    assert trainer.steps.replay.plan == MicroBatches(None)
    failures = [MemoryError("for once")]

    def fail(*_):
        if failures:
            raise failures.pop()

    trainer.model.text_model.encoder.layers[1].register_forward_pre_hook(fail)
    trainer.training_step(trainer.model, inputs)
    assert trainer.steps.replay.plan == MicroBatches(32)
    for number, expected in ((1, MicroBatches(32)), (40, MicroBatches(32)), (60, MicroBatches(None))):
        with_room(monkeypatch, trainer, 2**40)
        trainer.steps.sizing.choose(inputs, number)
        assert trainer.steps.replay.plan == expected


def test_training_with_auto_is_training_without(tmp_path, clip, pairs, monkeypatch):
    """Also where memory allows a part of the batch only, and captions of several lengths come."""

    def weights(size, share=None):
        arguments = ClipTrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, max_steps=6, use_cpu=True, disable_tqdm=True,
            save_strategy="no", micro_batch_size=size, learning_rate=1e-3, adam_epsilon=1e-6, monitor=False,
        )  # fmt: skip
        trainer = ClipTrainer(clip(), arguments, train_dataset=pairs(24))
        if share is not None:
            trainer.steps.sizing.to_come = lambda: 0
            rows = {name: value[:8] for name, value in pairs(24).batch.items()}
            need = trainer._fit_memory(rows).need(MicroBatches(None), 8)
            monkeypatch.setattr(memory, "room", lambda device: int(share * need / 0.9))
        trainer.train()
        return trainer, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    _, plain = weights(None)
    whole, same = weights("auto")
    assert whole.steps.replay.plan == MicroBatches(None) and torch.equal(plain, same)
    small, close = weights("auto", share=0.9)
    assert small.steps.replay.plan.size is not None and small.steps.replay.shortages == 0
    assert (plain - close).abs().max() < 1e-5
