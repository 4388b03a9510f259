"""What the monitor logs is what happened, and it changes nothing."""

import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import ProgressCallback, TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.models.patch_dropout import install_patch_dropout
from hf_clip_domain.training import ClipTrainer, timing
from hf_clip_domain.training.callbacks.monitor import KEYS, MonitoredProgress, RunMonitor
from hf_clip_domain.training.flops import flops_per_pair, peak_flops
from hf_clip_domain.training.micro_batching import install_embedding_forward
from hf_clip_domain.training.timing import PHASES, Stopwatch

CPU = torch.device("cpu")


def arguments(folder, **settings):
    settings = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "report_to": [], **settings}
    return ClipTrainingArguments(str(folder), **settings)


def measured(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def shares(entry):
    return {phase: entry[f"time_share/{phase}"] for phase in PHASES}


def test_every_training_log_carries_every_figure(tmp_path, clip, pairs):
    trainer = ClipTrainer(
        clip(),
        arguments(tmp_path, max_steps=6, logging_steps=2, micro_batch_size=3, eval_strategy="steps", eval_steps=3),
        train_dataset=pairs(16),
        eval_dataset=pairs(8),
    )
    trainer.train()
    assert len(measured(trainer)) == 3
    for entry in measured(trainer):
        assert KEYS <= entry.keys()
        assert sum(shares(entry).values()) == pytest.approx(1) and min(shares(entry).values()) > 0
        assert entry["micro_batch_size"] == 3
        assert 0 < entry["memory/process_mib"] <= entry["memory/peak_mib"] + 1 and entry["memory/room_mib"] > 0
        assert 0 < entry["flops/share_of_peak"] < 1
    evaluation = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluation and not KEYS & evaluation[0].keys()


@pytest.mark.parametrize(("micro", "accumulation", "lora"), [(None, 1, False), (3, 2, False), (None, 1, True)])
def test_the_run_is_the_same_with_and_without(tmp_path, clip, pairs, micro, accumulation, lora):
    """Also with dropout, whose random numbers a careless measurement would draw from."""

    def weights(watched):
        model = clip(dropout=0.1)
        if lora:
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, lora_dropout=0.1))
        settings = {"max_steps": 6, "logging_steps": 2, "gradient_accumulation_steps": accumulation, "seed": 4}
        settings |= {"micro_batch_size": micro, "learning_rate": 1e-2, "save_strategy": "no"}
        trainer = ClipTrainer(
            model, arguments(tmp_path, monitor=watched, live_page=watched, **settings), train_dataset=pairs(32)
        )
        trainer.train()
        assert all((KEYS <= entry.keys()) == watched for entry in measured(trainer))
        assert measured(trainer)[0]["step"] == 2
        return model.state_dict()

    one, other = weights(True), weights(False)
    assert all(torch.equal(one[name], other[name]) for name in one)


class Slow(TrainerCallback):
    """Spends a while where it is told."""

    def __init__(self, where, seconds):
        setattr(self, where, lambda *_, **__: time.sleep(seconds))


@pytest.mark.parametrize("phase", PHASES)
def test_time_is_charged_to_the_phase_that_took_it(tmp_path, clip, pairs, phase):
    model, seconds = clip(), 0.4

    def collate(rows):
        time.sleep(seconds if phase == "data" else 0)
        return torch.utils.data.default_collate(rows)

    if phase == "forward":
        model.visual_projection.register_forward_hook(lambda *_: time.sleep(seconds))
    if phase == "backward":
        model.visual_projection.register_full_backward_hook(lambda *_: time.sleep(seconds))
    trainer = ClipTrainer(
        model, arguments(tmp_path, max_steps=2, logging_steps=2), train_dataset=pairs(16), data_collator=collate
    )
    if phase == "optimizer":
        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(lambda *_: time.sleep(seconds))
    trainer.train()
    (entry,) = measured(trainer)
    assert shares(entry)[phase] > 0.5
    assert entry["pairs_per_second"] < 8 / seconds


def test_evaluation_and_logging_are_nobodys_time(tmp_path, clip, pairs):
    class Evaluator:
        def __call__(self, model):
            time.sleep(1)
            return {"score": 1.0}

    settings = {"max_steps": 4, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    trainer = ClipTrainer(
        clip(),
        arguments(tmp_path, **settings),
        train_dataset=pairs(16),
        eval_dataset=pairs(8),
        evaluators=[Evaluator()],
    )
    trainer.add_callback(Slow("on_log", 1))
    trainer.train()
    # Two steps of 8 pairs, two evaluations and a log: with the latter two counted, 16 pairs would take three seconds.
    assert all(entry["pairs_per_second"] > 16 / 2 for entry in measured(trainer))


def test_pairs_a_second_count_every_row_of_accumulated_batches(tmp_path, clip, pairs):
    settings = {"max_steps": 3, "logging_steps": 3, "gradient_accumulation_steps": 2}
    trainer = ClipTrainer(clip(), arguments(tmp_path, **settings), train_dataset=pairs(48))
    read, whole = trainer.monitor.stopwatch.read, []
    trainer.monitor.stopwatch.read = lambda: whole.append(read()) or whole[-1]
    trainer.train()
    (entry,) = measured(trainer)
    assert entry["pairs_per_second"] * sum(whole[0].values()) == pytest.approx(3 * 2 * 8)


def test_the_stopwatch_adds_up_by_phase(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing, "_clock", lambda device: (lambda: now[0], lambda start, end: end - start))
    stopwatch = Stopwatch(CPU)
    with stopwatch.forward():  # an evaluation: the watch stands still
        now[0] += 100
    for _ in range(2000):  # more switches than are kept
        stopwatch.switch("data")
        now[0] += 1
        with stopwatch.forward():
            now[0] += 2
        now[0] += 3
        stopwatch.switch("optimizer")
        now[0] += 4
        stopwatch.switch(None)
        now[0] += 50
    assert stopwatch.read() == {"data": 2000, "forward": 4000, "backward": 6000, "optimizer": 8000}
    assert len(stopwatch._marks) <= 1 and sum(stopwatch.read().values()) == 0


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_an_accelerators_time_is_taken_from_events_in_its_queue(monkeypatch, kind):
    """The device is faked: each event tells when the device, half a second behind the host, reaches it."""
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at, self.seen = clock[0] + 0.5, False

        def synchronize(self):
            self.seen = True

        def elapsed_time(self, end):
            assert end.seen  # not before the device has reached it
            return 1000 * (end.at - self.at)

    module = torch.cuda if kind == "cuda" else torch.mps.event
    monkeypatch.setattr(module, "Event", Event)
    stopwatch = Stopwatch(torch.device(kind))
    stopwatch.switch("data")
    clock[0] += 2
    with stopwatch.forward():
        clock[0] += 3
    stopwatch.switch(None)
    assert stopwatch.read() == {"data": 2, "forward": 3, "backward": 0, "optimizer": 0}


def test_flops_are_those_of_the_matrix_products(clip, batch):
    """Against the sum by hand: every weight of a linear layer, and the attention, three times (forward and back)."""
    model = clip()
    install_embedding_forward(model)
    inputs = batch(5)
    patches, length = 2 * 2 + 1, inputs["input_ids"].shape[1]
    counted = flops_per_pair(model, inputs)
    by_hand = 0
    for tower, rows in ((model.vision_model, patches), (model.text_model, length)):
        linear = [module for module in tower.modules() if isinstance(module, nn.Linear)]
        by_hand += sum(3 * 2 * rows * module.weight.numel() for module in linear)
        by_hand += 2 * 3 * 2 * (2 * rows * rows * 32)  # two layers of scores and values
    by_hand += sum(3 * 2 * module.weight.numel() for module in (model.visual_projection, model.text_projection))
    convolution = model.vision_model.embeddings.patch_embedding
    by_hand += 2 * 2 * 4 * convolution.weight.numel()  # pixels need no gradient
    assert counted == pytest.approx(by_hand, rel=0.02)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_flops_know_frozen_towers_longer_texts_several_sizes_and_no_recomputation(clip, batch):
    model = clip()
    install_embedding_forward(model)
    plain = flops_per_pair(model, batch(2))
    assert flops_per_pair(model, batch(2, length=6)) < plain < flops_per_pair(model, batch(2, length=16))
    assert flops_per_pair(model, batch(2), image_sizes=[16, 32]) > 1.5 * plain
    install_patch_dropout(model, 0.75)  # one patch of four remains
    state = torch.get_rng_state()
    assert flops_per_pair(model, batch(2)) < 0.9 * plain
    assert torch.equal(torch.get_rng_state(), state)
    install_patch_dropout(model, 0.0)
    model.gradient_checkpointing_enable()
    assert flops_per_pair(model, batch(2)) == plain
    model.gradient_checkpointing_disable()
    model.vision_model.requires_grad_(False)
    assert flops_per_pair(model, batch(2)) < plain
    model.requires_grad_(False)
    assert 2.8 < plain / flops_per_pair(model, batch(2)) < 3.1


def test_the_peak_is_measured_once_and_quickly_without_the_runs_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    peak_flops.cache_clear()
    start = time.perf_counter()
    peak = peak_flops(CPU, torch.float32)
    assert time.perf_counter() - start < 2  # half a second on a machine that does nothing else
    assert torch.equal(torch.rand(1), expected)
    assert 1e8 < peak < 1e14
    start = time.perf_counter()
    assert peak_flops(CPU, torch.float32) == peak and time.perf_counter() - start < 0.01


def test_a_model_that_cannot_be_counted_is_trained_all_the_same(tmp_path, clip, pairs, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("hf_clip_domain.training.callbacks.monitor.flops_per_pair", refuse)
    trainer = ClipTrainer(clip(), arguments(tmp_path, max_steps=2, logging_steps=1), train_dataset=pairs(16))
    trainer.train()
    assert all(entry["pairs_per_second"] > 0 and "flops/share_of_peak" not in entry for entry in measured(trainer))


def test_batches_without_all_their_pictures_are_timed_and_not_counted(clip, batch):
    monitor = RunMonitor(CPU, processes=2, precision=torch.float32, micro_batch=lambda: None)
    monitor.on_train_begin(None, None, None)
    monitor.stopwatch.switch("data")
    monitor.count([{**batch(8), "pixel_values": torch.zeros(3, 3, 16, 16)}, {"input_ids": torch.zeros(8, 12)}])
    monitor.stopwatch.switch(None)
    entry = monitor.measure(clip())
    assert entry.keys() == KEYS - {"flops/achieved_tflops", "flops/share_of_peak"}
    assert entry["pairs_per_second"] > 0 and entry["micro_batch_size"] == 8
    assert monitor.measure(clip()) == {}  # no step since
    monitor.on_train_end(None, None, None)


def test_siglip_is_measured_too(tmp_path, siglip, pairs):
    trainer = ClipTrainer(siglip(), arguments(tmp_path, max_steps=1, logging_steps=1), train_dataset=pairs(16))
    trainer.train()
    assert KEYS <= measured(trainer)[0].keys()


def test_the_bar_shows_a_few_figures_and_the_lines_stay_short(tmp_path, clip, pairs, capsys):
    trainer = ClipTrainer(
        clip(), arguments(tmp_path, max_steps=4, logging_steps=1, disable_tqdm=False), train_dataset=pairs(16)
    )
    bars = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ProgressCallback)]
    assert [type(bar) for bar in bars] == [MonitoredProgress]
    trainer.train()
    out, err = capsys.readouterr()
    assert "pairs/s=" in err and "peak MiB=" in err and "micro=8" in err
    assert "'loss'" in out + err and "time_share" not in out + err
