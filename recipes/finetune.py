"""accelerate launch recipes/finetune.py --domain scientific"""

import sys

from hf_clip_domain.cli.errors import run_cleanly
from hf_clip_domain.cli.train import run

if __name__ == "__main__":
    sys.exit(run_cleanly(run, sys.argv[1:]))
