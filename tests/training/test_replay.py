"""A step that runs out of memory is run again, and nobody can tell from the weights."""

import random
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest
import torch
from transformers import TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.micro_batching import MicroBatches
from hf_clip_domain.training.optimizer_step import install_step_replay
from hf_clip_domain.training.replay import is_out_of_memory

OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:118] data. DefaultCPUAllocator: can't allocate memory: you tried to 9"


class Shortage:
    """Fails the forward pass of a layer, its backward pass or the optimizer's step at some calls, as the allocator would.

    A micro-batch of one row always fits.
    """

    def __init__(self, trainer, share, seed=0):
        self.draws, self.trainer, self.share, self.failures = random.Random(seed), trainer, share, []
        layer = trainer.model.vision_model.encoder.layers[1]
        layer.register_forward_hook(lambda *_: self.perhaps_fail("forward"))
        layer.register_full_backward_hook(lambda *_: self.perhaps_fail("backward"))
        text = trainer.model.text_model.encoder.layers[0]
        text.register_forward_hook(lambda *_: self.perhaps_fail("forward"))

    def perhaps_fail(self, where):
        if self.draws.random() < self.share and self.trainer.steps.replay.plan != MicroBatches(1):
            self.failures.append(where)
            raise RuntimeError(OUT_OF_MEMORY)


def train(folder, model, pairs, share=0.0, seed=0, **settings):
    settings = {"max_steps": 12, "learning_rate": 1e-3, "logging_steps": 1, "adam_epsilon": 1e-6, **settings}
    arguments = ClipTrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        monitor=False,
        **settings,
    )
    trainer = ClipTrainer(model, arguments, train_dataset=pairs(24))
    shortage = Shortage(trainer, share, seed)
    trainer.train()
    return trainer, shortage


def largest_difference(first, second):
    both = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return max((one - other).abs().max().item() for one, other in both)


def grow_again(trainer):
    """So that a run has many shortages: in reality a plan that was halved stays so, but for `auto`."""

    class Grow(TrainerCallback):
        def on_step_begin(self, *_, **__):
            trainer.steps.replay.plan = MicroBatches(None)

    trainer.add_callback(Grow())


@pytest.mark.slow
def test_shortages_at_random_places_of_80_steps_change_nothing(tmp_path, clip, pairs):
    # In float64: 80 steps enlarge what another order of summing rounds, how much depends on the processor.
    smooth, _ = train(tmp_path, clip().double(), pairs, max_steps=80, learning_rate=1e-4)
    rough, shortage = many_shortages(tmp_path, clip().double(), pairs, max_steps=80, learning_rate=1e-4)
    assert {"forward", "backward", "optimizer"} == set(shortage.failures) and len(shortage.failures) > 16
    assert rough.steps.replay.shortages == len([place for place in shortage.failures if place != "optimizer"])
    assert largest_difference(smooth, rough) < 1e-10
    assert [e["step"] for e in rough.state.log_history if "loss" in e] == list(range(1, 81))
    losses = ([e["loss"] for e in trainer.state.log_history if "loss" in e] for trainer in (rough, smooth))
    assert next(losses) == pytest.approx(next(losses), rel=1e-4, abs=1e-5)


def many_shortages(folder, model, pairs, **settings):
    arguments = ClipTrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        monitor=False,  # whose counting of operations would draw shortages as well
        logging_steps=1,
        adam_epsilon=1e-6,
        **settings,
    )
    trainer = ClipTrainer(model, arguments, train_dataset=pairs(24))
    shortage = Shortage(trainer, 0.04)
    grow_again(trainer)
    with failing_optimizer(shortage):
        trainer.train()
    return trainer, shortage


@contextmanager
def failing_optimizer(shortage):
    """The kernel that steps a group of parameters fails at times; the next try fits."""
    kernel = torch._fused_adamw_

    def perhaps(*args, **kwargs):
        if shortage.failures[-1:] != ["optimizer"]:
            shortage.perhaps_fail("optimizer")
        return kernel(*args, **kwargs)

    torch._fused_adamw_ = perhaps
    try:
        yield
    finally:
        torch._fused_adamw_ = kernel


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_the_making_of_the_optimizers_state_may_fail_anywhere(monkeypatch, settings):
    def stepped(fail_at):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(3, 3)) for _ in range(6)]
        groups = [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 1e-2}]
        optimizer, told, calls = torch.optim.AdamW(groups, lr=1e-3, **settings), [], [0]
        install_step_replay(optimizer, told.append)
        zeros = torch.zeros_like

        def limited(*args, **kwargs):
            calls[0] += 1
            if calls[0] == fail_at:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return zeros(*args, **kwargs)

        for _ in range(3):
            for parameter in parameters:
                parameter.grad = parameter.detach() + 1
            with monkeypatch.context() as patch:
                patch.setattr(torch, "zeros_like", limited)
                optimizer.step()
            assert all(parameter.grad is not None for parameter in parameters)
        return parameters, optimizer, told, calls[0]

    wanted, reference, _, calls = stepped(None)
    assert calls == 12
    for fail_at in range(1, calls + 1):
        found, optimizer, told, _ = stepped(fail_at)
        assert len(told) == 1
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
            for name, value in reference.state[other].items():
                assert torch.equal(optimizer.state[one][name], value)


def test_a_half_changed_parameter_is_an_error_and_no_second_change(monkeypatch):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, foreach=False)
    install_step_replay(optimizer, lambda what: None)
    parameter.grad = torch.ones(3)

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch.Tensor, "addcdiv_", fail)  # after the weight decay
    with pytest.raises(ClipDomainError, match="does not fit in memory.*--optim adafactor"):
        optimizer.step()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_random_shortages_change_nothing(tmp_path, clip, pairs, accumulation):
    smooth, _ = train(tmp_path, clip(), pairs, gradient_accumulation_steps=accumulation)
    choices = {"share": 0.04, "seed": 1, "gradient_accumulation_steps": accumulation}
    rough, shortage = train(tmp_path, clip(), pairs, **choices)
    assert shortage.failures and rough.steps.replay.shortages == len(shortage.failures)
    assert largest_difference(smooth, rough) < 1e-5
    steps = [entry["step"] for entry in rough.state.log_history if "loss" in entry]
    assert steps == list(range(1, 13))
    for name in ("loss", "similarity_gap", "image_to_text_loss"):
        found, wanted = (
            [entry[name] for entry in trainer.state.log_history if "loss" in entry] for trainer in (rough, smooth)
        )
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_same_size_again_is_bitwise_the_same_with_dropout(tmp_path, clip, batch):
    """Random numbers are put back: here the size cannot shrink the step, so that the draws are the same."""

    def gradient(fail):
        torch.manual_seed(1)
        model = clip(dropout=0.5)
        arguments = ClipTrainingArguments(str(tmp_path), use_cpu=True, micro_batch_size=4)
        trainer = ClipTrainer(model, arguments)
        trainer.current_gradient_accumulation_steps = 1
        failures = [fail]

        def fail_once(*_):
            if failures.pop() if failures else False:
                trainer.steps.replay.plan = MicroBatches(8)  # halved to 4 again
                raise RuntimeError(OUT_OF_MEMORY)

        model.text_model.encoder.layers[1].register_full_backward_hook(fail_once)
        trainer.training_step(model, batch(8))
        assert trainer.steps.replay.plan == MicroBatches(4) and trainer.steps.replay.shortages == fail
        return [p.grad for p in model.parameters()]

    both = zip(gradient(False), gradient(True), strict=True)
    assert all(torch.equal(one, other) for one, other in both)


def test_sizes_are_halved_down_to_one_row_and_then_it_is_an_error(tmp_path, clip, batch):
    model = clip()
    trainer = ClipTrainer(model, ClipTrainingArguments(str(tmp_path), use_cpu=True))
    trainer.current_gradient_accumulation_steps = 1
    sizes = []

    def refuse(module, arguments):
        sizes.append(trainer.steps.replay.plan.size)
        raise MemoryError

    model.vision_model.encoder.layers[0].register_forward_pre_hook(refuse)
    with pytest.raises(ClipDomainError, match="not even a micro-batch of one row fits"):
        trainer.training_step(model, batch(7))
    assert sizes == [None, 4, 2, 1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(OUT_OF_MEMORY), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory of the past"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


PROGRAM = textwrap.dedent(
    """
    import resource, sys
    import torch
    from importlib.util import module_from_spec, spec_from_file_location
    from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments
    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.training import ClipTrainer

    spec = spec_from_file_location("shared", sys.argv[1])
    shared = module_from_spec(spec)
    spec.loader.exec_module(shared)
    kind, room, folder = sys.argv[2], int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = shared.make_clip().config
    config.vision_config.update({"image_size": 96, "hidden_size": 64})
    model = CLIPModel(config)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 128

        def __getitem__(self, key):
            ids = torch.full((12,), key % 90 + 1)
            ids[-1] = 98
            pixels = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(key))
            return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    settings = dict(per_device_train_batch_size=128, max_steps=3, use_cpu=True, disable_tqdm=True, save_strategy="no",
                    learning_rate=1e-3, adam_epsilon=1e-6)
    # One small step with everything loaded, and then a hard limit on the address space.
    warm = ClipTrainer(shared.make_clip(), ClipTrainingArguments(folder, **{**settings, "per_device_train_batch_size": 4}),
                       train_dataset=shared.Pairs(8))
    warm.train()
    if room:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + room * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if kind == "plain":
        class Plain(Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return model(**inputs, return_loss=True).loss
        trainer = Plain(model, TrainingArguments(folder, **settings), train_dataset=Rows())
    else:
        size = None if kind == "replay" else kind
        trainer = ClipTrainer(model, ClipTrainingArguments(folder, micro_batch_size=size, **settings), train_dataset=Rows())
    trainer.train()
    if kind != "plain":
        print("micro-batch", trainer.steps.replay.plan.size, "replays", trainer.steps.replay.shortages)
    torch.save({name: p.detach() for name, p in model.named_parameters()}, folder + "/weights.pt")
    """
)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the address space")
def test_a_hard_limit_that_ends_plain_trainer_is_survived(tmp_path):
    """A real limit of the operating system, under which the whole batch does not fit."""
    from pathlib import Path

    (tmp_path / "program.py").write_text(PROGRAM)
    shared = str(Path(__file__).with_name("conftest.py"))

    def start(kind, room):
        folder = tmp_path / f"{kind}-{room}"
        folder.mkdir()
        command = [sys.executable, str(tmp_path / "program.py"), shared, kind, str(room), str(folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=700), folder

    free, unlimited = start("replay", 0)
    assert free.returncode == 0 and "replays 0" in free.stdout, free.stderr[-2000:]
    plain, _ = start("plain", 100)
    assert plain.returncode != 0 and "memory" in plain.stderr
    for kind, shortages in (("replay", range(1, 9)), ("auto", range(0, 1))):
        limited, folder = start(kind, 100)
        assert limited.returncode == 0, limited.stderr[-2000:]
        assert int(limited.stdout.split()[-1]) in shortages
        first, second = (torch.load(path / "weights.pt") for path in (unlimited, folder))
        assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-5
