"""Several processes on one machine's CPU, as `accelerate launch --cpu --num_processes 2` promises.

accelerate starts CPU processes through MPI only; without an MPI host file it starts a single one and says nothing.
The batch would then be smaller than asked for, so the processes are started here, by torch's own launcher.
Can go when accelerate starts them itself.
"""

from __future__ import annotations

import os
import sys

import psutil

from hf_clip_domain.errors import ClipDomainError


def start_promised_processes() -> None:
    """Replace this process by torch's launcher when accelerate promised several CPU processes but started one.

    Returns when there is nothing to mend. To be called first in a script that `accelerate launch` runs.

    Raises:
        ClipDomainError: several machines were asked for, which needs torch's launcher on each of them.
    """
    # With several processes asked for, accelerate's single-process launcher sets the address and no rank.
    alone = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ and not _under_mpi()
    if not alone or os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("true", "1"):
        return
    count = _promised_processes(psutil.Process().parent())
    if count < 2:
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    if os.environ["MASTER_ADDR"] != "127.0.0.1":
        raise ClipDomainError(
            "several machines of CPU processes: run `torchrun --nnodes N --node_rank R --master_addr HOST "
            f"--nproc_per_node {count} {sys.argv[0]} --use_cpu ...` on each of them."
        )
    command += ["--master_addr", "127.0.0.1", "--master_port", os.environ.get("MASTER_PORT", "29500")]
    sys.stdout.flush()
    # Without the two dashes the launcher takes an option such as --monitor for an abbreviation of one of its own.
    os.execv(sys.executable, [*command, "--", *sys.argv])


def _under_mpi() -> bool:
    return any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"))


def _promised_processes(launcher: psutil.Process | None) -> int:
    """The `--num_processes` of the `accelerate launch` that started this process; 1 when it cannot be read."""
    if launcher is None:
        return 1
    words = launcher.cmdline()
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or words[place + 1]
            return int(value) if value.isdigit() else 1
    return 1
