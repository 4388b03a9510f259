"""Two processes train the trajectory of one process with the doubled batch."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

PROGRAM = textwrap.dedent(
    """
    import sys
    from importlib.util import module_from_spec, spec_from_file_location
    import torch
    from hf_clip_domain.cli.processes import start_promised_processes

    start_promised_processes()

    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.training import ClipTrainer

    spec = spec_from_file_location("shared", sys.argv[1])
    shared = module_from_spec(spec)
    spec.loader.exec_module(shared)

    class Grouped(shared.Pairs):
        def __getitem__(self, key):
            return {**super().__getitem__(key), "targets": key % len(self) // 2}

    folder, batch, micro, groups = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "groups"
    arguments = ClipTrainingArguments(
        folder, per_device_train_batch_size=batch, micro_batch_size=micro, max_steps=5, learning_rate=1e-3,
        use_cpu=True, disable_tqdm=True, save_strategy="steps", save_steps=3, seed=3,
        # The gradient of a key's bias is zero but for rounding, which Adam's usual 1e-8 would blow up to whole steps.
        adam_epsilon=1e-6,
    )
    torch.set_num_threads(1)
    trainer = ClipTrainer(
        shared.make_clip(), arguments, train_dataset=(Grouped if groups else shared.Pairs)(40)
    )
    resume = len(sys.argv) > 6
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), folder + "/final.pt")
        print("processes:", trainer.args.world_size)
    """
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(tmp_path, name, processes, batch, groups="plain", resume=False):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / name
    shared = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", str(free_port())]
    command += [str(program), str(shared), str(folder), str(batch), "3", groups] + (["resume"] if resume else [])
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"processes: {processes}" in finished.stdout
    return torch.load(folder / "final.pt", weights_only=True)


def largest_difference(first, second):
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("groups", ["plain", "groups"])
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, groups):
    one = launch(tmp_path, "one", 1, 16, groups)
    two = launch(tmp_path, "two", 2, 8, groups)
    assert largest_difference(one, two) < 1e-5


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_an_epoch(tmp_path):
    whole = launch(tmp_path, "run", 2, 8)
    again = launch(tmp_path, "run", 2, 8, resume=True)  # from checkpoint-3: the last step of an epoch is checkpoint-5
    assert largest_difference(whole, again) < 1e-7
