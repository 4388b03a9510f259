"""A checkpoint is whole, or it is named and passed over."""

import multiprocessing
import os
import resource
import signal
import time

import pytest
import torch
from transformers import TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import ClipTrainer, checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")  # a forked child has no thread pool to join


def make_trainer(folder, clip, pairs, callbacks=(), **settings):
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 1e-3,
        "micro_batch_size": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        **settings,
    }
    arguments = ClipTrainingArguments(str(folder), **settings)
    return ClipTrainer(clip(dropout=0.1), arguments, train_dataset=pairs(40), callbacks=list(callbacks))


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def assert_bitwise_equal(found, expected):
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run_child(target, *args):
    """Run in a process of its own; returns its exit code (negative: the signal that ended it)."""
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    child.join(120)
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.parametrize("step", [3, 7, 10])
def test_a_killed_run_resumes_to_bitwise_the_same_weights(tmp_path, clip, pairs, step):
    """Five steps an epoch: the kills fall into the first, the middle of the second, and the start of the third."""
    whole = make_trainer(tmp_path / "whole", clip, pairs)
    whole.train()

    def killed():
        make_trainer(tmp_path / "cut", clip, pairs, [KillAt(step)]).train()

    assert run_child(killed) == -signal.SIGKILL
    resumed = make_trainer(tmp_path / "cut", clip, pairs)
    result = resumed.train(resume_from_checkpoint=True)
    assert result.global_step == 12
    assert_bitwise_equal(weights(resumed), weights(whole))
    logged = [entry["step"] for entry in resumed.state.log_history if "loss" in entry]
    assert len(logged) == len(set(logged))


def test_a_run_killed_while_saving_resumes_from_the_last_whole_checkpoint(tmp_path, clip, pairs, caplog):
    """The kill comes at random moments of a run that does nothing but save."""
    whole = make_trainer(tmp_path / "whole", clip, pairs, save_steps=1)
    whole.train()

    def train():
        make_trainer(tmp_path / "cut", clip, pairs, save_steps=1).train(resume_from_checkpoint=True)

    context = multiprocessing.get_context("fork")
    for delay in (0.4, 0.7, 1.1):
        child = context.Process(target=train)
        child.start()
        time.sleep(delay)
        child.kill()
        child.join()
    resumed = make_trainer(tmp_path / "cut", clip, pairs, save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    assert_bitwise_equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("damage", ["no manifest", "truncated", "changed", "missing"])
def test_a_torso_is_named_and_the_last_whole_checkpoint_is_used(tmp_path, clip, pairs, damage, caplog):
    trainer = make_trainer(tmp_path, clip, pairs, max_steps=4)
    trainer.train()
    newest, weights_file = tmp_path / "checkpoint-4", tmp_path / "checkpoint-4" / "model.safetensors"
    assert checkpoints.defect(newest) is None
    content = weights_file.read_bytes()
    if damage == "no manifest":
        (newest / checkpoints.MANIFEST).unlink()
    elif damage == "truncated":
        weights_file.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        weights_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        weights_file.unlink()
    checkpoints.logger.addHandler(caplog.handler)
    assert checkpoints.choose_checkpoint(True, tmp_path) == tmp_path / "checkpoint-2"
    assert checkpoints.choose_checkpoint(str(newest), tmp_path) == tmp_path / "checkpoint-2"
    checkpoints.logger.removeHandler(caplog.handler)
    assert "checkpoint-4 is not a whole checkpoint" in caplog.text


def test_a_path_without_checkpoint_is_an_error_that_lists_what_is_there(tmp_path, clip, pairs):
    make_trainer(tmp_path, clip, pairs, max_steps=2).train()
    with pytest.raises(ClipDomainError, match="checkpoint-2"):
        checkpoints.choose_checkpoint(str(tmp_path / "checkpoint-3"), tmp_path)
    (tmp_path / "checkpoint-2" / checkpoints.MANIFEST).unlink()
    with pytest.raises(ClipDomainError, match="not a whole checkpoint"):
        checkpoints.choose_checkpoint(str(tmp_path / "checkpoint-2"), tmp_path)
    assert checkpoints.choose_checkpoint(True, tmp_path / "new") is None


def test_a_run_in_which_other_parameters_train_is_not_gone_on_with(tmp_path, clip, pairs):
    make_trainer(tmp_path, clip, pairs, max_steps=2).train()
    other = make_trainer(tmp_path, clip, pairs, max_steps=4)
    other.model.vision_model.requires_grad_(False)
    with pytest.raises(ClipDomainError, match="checkpoint-2 was written by a run in which other parameters train"):
        other.train(resume_from_checkpoint=True)


def test_the_newest_checkpoint_is_the_one_written_last(tmp_path, clip, pairs):
    """A fresh run in the folder of a longer, older one must not continue the older one."""
    make_trainer(tmp_path, clip, pairs, max_steps=6, save_steps=6).train()
    make_trainer(tmp_path, clip, pairs, max_steps=2).train()
    assert checkpoints.last_whole_checkpoint(tmp_path).name == "checkpoint-2"


def test_old_checkpoints_go_only_once_the_new_one_is_whole(tmp_path, clip, pairs, monkeypatch):
    trainer = make_trainer(tmp_path, clip, pairs, max_steps=4, save_total_limit=1)
    there_when_sealing = []
    seal = checkpoints.seal
    monkeypatch.setattr(
        checkpoints,
        "seal",
        lambda folder: (there_when_sealing.append(sorted(p.name for p in tmp_path.glob("checkpoint-*"))), seal(folder)),
    )
    trainer.train()
    assert there_when_sealing == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_full_disk_is_one_sentence_and_keeps_the_earlier_checkpoint(tmp_path, clip, pairs):
    """A real limit: the kernel refuses to let any file grow beyond the given size."""
    make_trainer(tmp_path, clip, pairs, max_steps=2).train()

    def out_of_space():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        trainer = make_trainer(tmp_path, clip, pairs, max_steps=4)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            trainer.train(resume_from_checkpoint=True)
        except ClipDomainError as error:
            message = str(error)
            expected = ("checkpoint-4 could not be written", "checkpoint-2 is safe", "--resume_from_checkpoint")
            os._exit(0 if all(part in message for part in expected) else 3)
        os._exit(4)

    assert run_child(out_of_space) == 0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = make_trainer(tmp_path, clip, pairs, max_steps=4)
    assert resumed.train(resume_from_checkpoint=True).global_step == 4
