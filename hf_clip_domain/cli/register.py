"""`hf-clip-domain register FOLDER --name NAME`: a run's folder as a version of a registered model."""

from __future__ import annotations

import argparse

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.promotion import CHAMPION
from hf_clip_domain.ops.registry import register, registry_client


def add_parser(commands) -> None:
    """Add `register` to the commands."""
    parser = commands.add_parser(
        "register",
        description="Log a folder as a model that MLflow serves by itself, and register it with what it is and scored as "
        "tags. The same model is registered once. The registry is that of MLFLOW_TRACKING_URI.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="Output folder of a run, of merge, or of export.")
    parser.add_argument("--name", required=True, help="Of the registered model; made when there is none.")
    parser.add_argument("--alias", help=f"Let this alias mean the version; not {CHAMPION}, which promote moves.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Register; returns the exit status.

    Raises:
        ClipDomainError: see `ops.registry.register`, or the alias is not to be had.
    """
    if args.alias == CHAMPION:
        raise ClipDomainError(
            f"--alias {CHAMPION}: that alias is moved by `hf-clip-domain promote {args.name} --candidate {args.folder}`."
        )
    version, new = register(args.folder, args.name)
    print(f"{'Registered' if new else 'Registered before'}: {version.uri}")
    if args.alias:
        with registry_client() as client:
            client.set_registered_model_alias(version.name, args.alias, version.number)
        print(f"models:/{version.name}@{args.alias} is version {version.number}.")
    return 0
