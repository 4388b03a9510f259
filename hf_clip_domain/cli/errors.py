"""A user's mistake ends with one clear line on standard error, never with a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from hf_clip_domain.errors import ClipDomainError


def run_cleanly(function: Callable[[Any], int], argument: Any) -> int:
    """Call `function(argument)` and return the exit status: 0 done, 1 failed, 130 interrupted.

    Modules of the user's (`--loss my_losses:Mine`) are found where the command runs, which Python itself searches for
    scripts of that folder alone; last, so that a file there never stands for a library.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return function(argument)
    except ClipDomainError as error:
        # Every process of a distributed run fails alike: the first one tells.
        if os.environ.get("RANK", "0") == "0":
            print(f"hf-clip-domain: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hf-clip-domain: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left; closing standard output again at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
