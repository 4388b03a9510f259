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
    import random
    import sys
    from importlib.util import module_from_spec, spec_from_file_location
    import torch
    from hf_clip_domain.cli.processes import start_promised_processes

    start_promised_processes()

    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.losses import gather
    from hf_clip_domain.training import ClipTrainer
    from hf_clip_domain.training.micro_batching import MicroBatches
    from transformers import TrainerCallback

    spec = spec_from_file_location("shared", sys.argv[1])
    shared = module_from_spec(spec)
    spec.loader.exec_module(shared)

    class Grouped(shared.Pairs):
        def __getitem__(self, key):
            return {**super().__getitem__(key), "targets": key % len(self) // 2}

    class Related(shared.Pairs):
        def __getitem__(self, key):
            index = key % len(self)
            return {**super().__getitem__(key), "targets": {"caption": index // 2, "label": index % 3}}

    folder, batch, kind = sys.argv[2], int(sys.argv[3]), sys.argv[5]
    micro = "auto" if sys.argv[4] == "auto" else int(sys.argv[4])
    losses = {
        "related": ("info_nce", {"positives": {"caption": 1, "label": 0.5}, "negatives": {"kind": "hard"}}),
        "learned": ("sum", {"terms": [{"name": "info_nce"}, {"name": "siglip"}], "similarity": "bilinear",
                            "balance": "uncertainty"}),
    }
    loss, settings = losses.get(kind, ("info_nce", None))
    arguments = ClipTrainingArguments(
        folder, per_device_train_batch_size=batch, micro_batch_size=micro, learning_rate=1e-3,
        max_steps=20 if kind == "shortage" else 5,
        use_cpu=True, disable_tqdm=True, save_strategy="steps", save_steps=3, seed=3,
        # The gradient of a key's bias is zero but for rounding, which Adam's usual 1e-8 would blow up to whole steps.
        adam_epsilon=1e-6, loss=loss, loss_settings=settings, logging_steps=1,
        # Both processes take the same sizes; with micro-batches that follow them.
        resolutions="8,16" if kind == "groups" else None, resolution_schedule="random", resolution_warmup=1,
    )
    torch.set_num_threads(1)
    trainer = ClipTrainer(
        shared.make_clip(), arguments,
        train_dataset={"groups": Grouped, "related": Related}.get(kind, shared.Pairs)(40),
        data_collator=torch.utils.data.default_collate,
    )
    shortages = 0
    if kind == "shortage" and trainer.args.process_index == 1:  # one of two runs out of memory, at random places
        draws = random.Random(0)

        def perhaps_fail(*_):
            if draws.random() < 0.1 and trainer.steps.replay.plan.size != 1:
                global shortages
                shortages += 1
                raise torch.OutOfMemoryError("CUDA out of memory.")

        for layer in (trainer.model.vision_model.encoder.layers[1], trainer.model.text_model.encoder.layers[0]):
            layer.register_forward_hook(perhaps_fail)
            layer.register_full_backward_hook(perhaps_fail)
        trainer.loss.register_forward_pre_hook(perhaps_fail)  # between two collectives
        plain = gather._sum_over_processes
        gather._sum_over_processes = lambda values: perhaps_fail() or plain(values)
    if kind == "shortage":
        class Grow(TrainerCallback):
            def on_step_begin(self, *_, **__):
                trainer.steps.replay.plan = MicroBatches(None)

        trainer.add_callback(Grow())
    resume = "resume" in sys.argv
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        log = {name: torch.tensor([entry[name] for entry in logged]) for name in logged[0]
               if "loss" in name or "gap" in name or "weight" in name}
        torch.save({**trainer.model.state_dict(), **{f"log/{name}": values for name, values in log.items()}},
                   folder + "/final.pt")
        print("processes:", trainer.args.world_size, "replays:", trainer.steps.replay.shortages)
    if trainer.args.world_size > 1:  # as the command does: who ends first would take the other down
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    """
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(tmp_path, name, processes, batch, groups="plain", resume=False, micro="3", replays=0):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / name
    shared = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", str(free_port())]
    command += [str(program), str(shared), str(folder), str(batch), micro, groups] + (["resume"] if resume else [])
    command += ["--monitor", "false"]  # nothing reads it: torch's launcher must not take it for its --monitor-interval
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=700, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr[:3000] + finished.stderr[-3000:]
    assert f"processes: {processes} " in finished.stdout
    assert int(finished.stdout.split("replays: ")[1].split()[0]) >= replays
    return torch.load(folder / "final.pt", weights_only=True)


def largest_difference(first, second):
    weights = [name for name in first if not name.startswith("log/")]
    return max((first[name].double() - second[name].double()).abs().max().item() for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("groups", ["plain", "groups", "related", "learned"])
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, groups):
    """Weights, the loss's own included, and what is logged, although each process takes half of the rows."""
    one = launch(tmp_path, "one", 1, 16, groups)
    two = launch(tmp_path, "two", 2, 8, groups)
    assert "log/loss" in one and one["log/loss"].shape == (5,) and one.keys() == two.keys()
    assert ("contrastive_loss.log_variances" in one) == (groups == "learned")
    for name in [name for name in one if name.startswith("log/")]:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-4), name
    assert largest_difference(one, two) < 1e-5


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_an_epoch(tmp_path):
    whole = launch(tmp_path, "run", 2, 8)
    again = launch(tmp_path, "run", 2, 8, resume=True)  # from checkpoint-3: the last step of an epoch is checkpoint-5
    assert largest_difference(whole, again) < 1e-7


@pytest.mark.slow
def test_when_one_of_two_processes_runs_out_of_memory_both_run_the_step_again(tmp_path):
    undisturbed = launch(tmp_path, "one", 1, 16, "shortage", micro="16")
    disturbed = launch(tmp_path, "disturbed", 2, 8, "shortage", micro="8", replays=5)
    assert disturbed["log/loss"].shape == undisturbed["log/loss"].shape == (20,)
    assert torch.allclose(disturbed["log/loss"], undisturbed["log/loss"], rtol=1e-4, atol=1e-4)
    assert largest_difference(undisturbed, disturbed) < 1e-5


@pytest.mark.slow
def test_two_processes_choose_their_micro_batches_by_themselves(tmp_path):
    assert largest_difference(launch(tmp_path, "one", 1, 16), launch(tmp_path, "two", 2, 8, micro="auto")) < 1e-5
