"""`--push_to_hub`: the finished folder is published once, whole, in place of the Trainer's pushes of half a folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.sharing.hub import push_folder, resolve_repo_id
from hf_clip_domain.sharing.publication import Publication


def take_destination(training: ClipTrainingArguments) -> str | None:
    """The repository that `--push_to_hub` means, `None` without; takes the option away, lest the Trainer act on it.

    Raises:
        ClipDomainError: checkpoints are to be published, or the Hub does not know whose the repository would be.
    """
    if not training.push_to_hub:
        return None
    if training.hub_strategy not in ("end", "every_save"):
        raise ClipDomainError(
            f"--hub_strategy {training.hub_strategy.value}: checkpoints are not published (they hold optimizer states and "
            "paths): leave it out. The finished folder is pushed once."
        )
    training.push_to_hub = False
    return resolve_repo_id(training.hub_model_id, Path(training.output_dir), training.hub_token)


def publish(training: ClipTrainingArguments, repo_id: str, say) -> None:
    """Push the output folder.

    Raises:
        ClipDomainError: what failed, and the command that publishes the folder later.
    """
    folder = Path(training.output_dir)
    try:
        url = push_folder(
            Publication.of(folder),
            repo_id,
            private=training.hub_private_repo,
            revision=training.hub_revision,
            token=training.hub_token,
            say=say,
        )
    except ClipDomainError as error:
        raise ClipDomainError(
            f"the model is trained and saved in {folder}; publishing it failed: {error} To publish it later: "
            f"`hf-clip-domain push {shlex.quote(str(folder))} --repo_id {repo_id}`."
        ) from error
    say(f"Published: {url}")
