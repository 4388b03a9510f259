"""`hf-clip-domain serve MODEL`: answer requests over HTTP."""

from __future__ import annotations

import argparse
from typing import Any

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.settings import COMPILE, MIB, PRECISIONS, Settings, fields

_PACKAGES = ("fastapi", "uvicorn", "orjson", "prometheus_client", "python_multipart")
# Help by setting, in the order shown. Sizes are given in MiB and kept in bytes.
_GROUPS: dict[str, dict[str, str]] = {
    "model": {
        "name": "What requests call the model. Default: the folder's name or Hub id.",
        "device": "cuda, mps or cpu. Default: the first of them that there is.",
        "precision": "auto takes a lower one than fp32 where it is faster here and finds the same.",
        "compile": "torch.compile; auto tries it on CUDA, and keeps it where it is faster and finds the same.",
        "threads": "Threads that compute on a CPU. Default: as torch chooses.",
        "workers": "Threads that decode pictures. Default: one a core, eight at most.",
    },
    "address and keys": {
        "host": "Address to listen at.",
        "port": "Port; 0 is any free one.",
        "api_keys": "File of hashed keys, one name:sha256 a line.",
        "admin_keys": "File of hashed keys that may change the model and the gallery.",
        "without_keys": "Answer other machines without keys: where something else guards the server.",
        "rate_limit": "Requests a second for each key; 0 is no limit.",
        "rate_burst": "Requests that may come at once above it.",
    },
    "engine": {
        "max_batch": "Texts or pictures in one forward pass.",
        "batch_seconds": "How long one may take; batches shrink to fit.",
        "linger_ms": "How long a busy engine waits for company between batches, at most; an idle one never waits.",
        "queue": "Texts, and pictures, that may wait; then requests get 503.",
        "timeout": "Seconds a request may take.",
        "drain_seconds": "After SIGTERM, how long requests are still taken.",
    },
    "limits": {
        "max_body": "MiB of a request.",
        "max_bodies": "MiB of all requests at once.",
        "max_items": "Texts or pictures of a request.",
        "max_labels": "Labels of a classification.",
        "max_characters": "Characters of a text.",
        "max_image": "MiB of a picture.",
        "max_pixels": "Pixels of a picture.",
        "url_hosts": "Hosts from which a request may have a picture fetched. Default: none.",
        "url_timeout": "Seconds for that.",
    },
    "cache": {
        "cache": "MiB of embeddings kept in memory; 0 is none.",
        "disk_cache": "File of the cache on disk. Default: none.",
        "disk_cache_bytes": "Its size in MiB.",
    },
    "gallery and registry": {
        "gallery": "Folder of pictures, or any --dataset of train, that /search looks through. Default: none.",
        "max_gallery": "Pictures in it, at most.",
        "gallery_bytes": "MiB of pictures that requests may add to it.",
        "watch_seconds": "How often the alias of models:/NAME@ALIAS is looked up for another version; 0 is never.",
    },
    "monitoring": {
        "statistics": "Folder for statistics of requests, which monitor reads: sketches and scores, no pictures or texts, "
        "and not anonymous all the same. Default: none are kept.",
        "statistics_window": "Requests of a file.",
        "drift": "Folder that monitor --output writes: /stats and /metrics show its verdict. Default: none.",
    },
}
_IN_MIB = {"max_body", "max_bodies", "max_image", "cache", "disk_cache_bytes", "gallery_bytes"}


def add_parser(commands) -> None:
    """Add `serve` to the commands."""
    parser = commands.add_parser(
        "serve",
        description="A service around one model: /v1/embeddings, /similarity, /pairs, /classify, /search.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="Folder, Hub id, 'starter', or models:/NAME@ALIAS.")
    parser.add_argument(
        "--new_key", metavar="NAME", help="Print a new key, and its line for a keys file; serve nothing."
    )
    parser.add_argument(
        "--log_level", default="info", choices=["debug", "info", "warning", "error"], help="Default: info."
    )
    known, choices = fields(), {"precision": PRECISIONS, "compile": COMPILE, "device": ("cuda", "mps", "cpu")}
    for title, helps in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, words in helps.items():
            default = known[name].default
            if isinstance(default, bool):
                group.add_argument(f"--{name}", action="store_true", help=words)
                continue
            options: dict[str, Any] = {"choices": choices.get(name)}
            if isinstance(default, tuple):
                options |= {"nargs": "+", "default": default, "metavar": "HOST"}
            else:
                number = isinstance(default, float) or name in _IN_MIB
                kind = float if number else str if default is None else type(default)
                default = default // MIB if name in _IN_MIB else default
                options |= {"type": kind, "default": default}
                words += f" Default: {default}." if default not in (None, "") and "Default" not in words else ""
            group.add_argument(f"--{name}", help=words, **options)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status.

    Raises:
        ClipDomainError: settings that contradict each other, a package of the extra `serve` that is missing, or a
            model that cannot be loaded.
    """
    if args.new_key:
        from hf_clip_domain.serving.auth import new_key

        key, line = new_key(args.new_key)
        print(f"key (shown this once, for the client): {key}\nline (for the keys file):              {line}")
        return 0
    if args.model is None:
        raise ClipDomainError("serve needs a MODEL: a folder, a Hub id, 'starter', or models:/NAME@ALIAS.")
    for package in _PACKAGES:
        require(package, extra="serve")
    settings = settings_from(args)
    settings.check_exposure()
    import torch
    from transformers.utils.logging import disable_progress_bar

    from hf_clip_domain.serving.app import create_app
    from hf_clip_domain.serving.json_log import set_up_logging
    from hf_clip_domain.serving.run import run as serve

    disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    set_up_logging(args.log_level)
    serve(create_app(settings), settings)
    return 0


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings that the options mean."""
    names = [name for helps in _GROUPS.values() for name in helps]
    values = {name: getattr(args, name) for name in names}
    values = {name: int(value * MIB) if name in _IN_MIB else value for name, value in values.items()}
    return Settings(model=args.model, **{**values, "url_hosts": tuple(args.url_hosts)})
