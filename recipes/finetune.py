"""accelerate launch recipes/finetune.py --domain scientific"""

import sys

from hf_clip_domain.cli.errors import run_cleanly
from hf_clip_domain.cli.processes import start_promised_processes
from hf_clip_domain.mps_settings import prepare_mps


def main(argv: list[str]) -> int:
    start_promised_processes()
    prepare_mps()
    from hf_clip_domain.cli.train import run  # imports torch, which reads the settings of MPS once

    return run(argv)


if __name__ == "__main__":
    sys.exit(run_cleanly(main, sys.argv[1:]))
