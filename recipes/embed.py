"""accelerate launch recipes/embed.py MODEL DATASET --output DIR"""

import sys

from hf_clip_domain.cli.errors import run_cleanly
from hf_clip_domain.cli.processes import start_promised_processes


def main(argv: list[str]) -> int:
    start_promised_processes()
    from hf_clip_domain.cli.main import main as command  # after the processes: it imports torch

    return command(["embed", *argv])


if __name__ == "__main__":
    sys.exit(run_cleanly(main, sys.argv[1:]))
