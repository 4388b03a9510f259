"""`hf-clip-domain track FOLDER`: send what a run could not tell the tracking server while it was away."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.tracking import Journal, MlflowStore
from hf_clip_domain.ops.tracking.sender import deliver
from hf_clip_domain.ops.tracking.tracker import FOLDER


def add_parser(commands) -> None:
    """Add `track` to the commands."""
    parser = commands.add_parser("track", description="Sends a run's waiting entries; a second call sends nothing.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="The run's output folder.")
    parser.add_argument("--tracking_uri", help="Default: MLFLOW_TRACKING_URI.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Send and say how much; returns the exit status.

    Raises:
        ClipDomainError: a folder without a journal, or a server that does not answer.
    """
    folder = args.folder / FOLDER
    if not folder.is_dir():
        raise ClipDomainError(f"{args.folder} holds no {FOLDER} folder: it is no run with --report_to mlflow.")
    journal = Journal(folder)
    try:
        sent = deliver(journal, MlflowStore(args.tracking_uri))
    except ClipDomainError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise ClipDomainError(f"the tracking server did not take the entries, which are kept: {line}") from error
    print(f"{sent} entries sent." if sent else "Nothing waits to be sent.")
    return 0
