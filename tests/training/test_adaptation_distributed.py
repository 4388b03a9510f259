"""Two processes train adapters, partly frozen models and by Muon as one process with the doubled batch does."""

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

    def load(file):
        spec = spec_from_file_location("shared", file)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    shared, ways = load(sys.argv[1]), load(sys.argv[2])
    torch.set_num_threads(1)
    found = {}
    for way, (make, settings) in {
        "lora": (ways.adapted, {"ema_decay": 0.9}),
        "frozen": (lambda: ways.frozen("vision", "text:1"), {"layerwise_learning_rate_decay": 0.5}),
        "muon": (ways.base, {"muon_ratio": 4.0}),
        "checkpointed": (lambda: ways.frozen("vision:1"), {"gradient_checkpointing": True}),
        "checkpointed lora": (ways.adapted, {"gradient_checkpointing": True}),
    }.items():
        trainer = ways.trainer_of(
            make(), f"{sys.argv[3]}/{way}", shared.Pairs, max_steps=3, micro_batch_size=3, save_strategy="no",
            # The gradient of a key's bias is zero but for rounding, which Adam's usual 1e-8 would blow up to whole steps.
            adam_epsilon=1e-6, learning_rate=1e-3, **settings, **{"per_device_train_batch_size": int(sys.argv[4])},
        )
        trainer.train()
        found |= {f"{way} {name}": value for name, value in trainer.model.state_dict().items()}
    if trainer.is_world_process_zero():
        torch.save(found, sys.argv[3] + ".pt")
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    """
)


def launch(tmp_path, processes, batch):
    program, out = tmp_path / "program.py", tmp_path / f"by{processes}"
    program.write_text(PROGRAM)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), str(program)]
    command += [str(here.with_name("conftest.py")), str(here.with_name("test_adaptation.py")), str(out), str(batch)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=700, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return torch.load(f"{out}.pt", weights_only=True)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    one, two = launch(tmp_path, 1, 16), launch(tmp_path, 2, 8)
    assert one.keys() == two.keys() and len({name.split()[0] for name in one}) == 4
    difference = {name: (one[name].double() - two[name].double()).abs().max().item() for name in one}
    assert max(difference.values()) < 1e-5, max(difference, key=difference.get)
