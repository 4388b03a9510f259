"""A folder on the Hub, in one commit: all of it is there or none of it."""

from __future__ import annotations

import logging
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.sharing.publication import Publication

ATTEMPTS = 3
_SIGNATURE = re.compile(r"(https?://[^\s?'\"]+)\?\S+")
_WAIT = 5  # seconds; the library repeats single requests by itself before


def push_folder(
    publication: Publication,
    repo_id: str,
    *,
    message: str = "Model, card and report",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Upload and commit; the repository is made if there is none. Weights that arrived before are not sent again, so
    a push that broke off goes on where it was.

    Args:
        publication: the files.
        repo_id: `owner/name`, or `name` for one of your own.
        private: of a new repository; default: the owner's setting.
        revision: branch, made if there is none.
        token: default: that of `hf auth login`, or `HF_TOKEN`.
        say: told when an attempt broke off.

    Returns:
        The address of the commit.

    Raises:
        ClipDomainError: no network, no permission, or the Hub refuses the files; nothing is published then.
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    requests = logging.getLogger("huggingface_hub.utils._http")  # warns of retries, with whole addresses
    requests.addFilter(_without_signatures)
    try:
        return _push(api, publication, repo_id, message, private, revision, token, say)
    finally:
        requests.removeFilter(_without_signatures)


def _push(api, publication, repo_id, message, private, revision, token, say) -> str:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _explained(repo_id, publication.folder, token):
                return _commit(api, publication, repo_id, message, private, revision)
        except _BrokenOff as error:
            if attempt == ATTEMPTS:
                raise ClipDomainError(
                    f"{error} Nothing was published, and nothing is lost: `hf-clip-domain push {shlex.quote(str(publication.folder))} "
                    f"--repo_id {repo_id}` goes on, sending only what is missing."
                ) from error
            say(f"{error} Trying again in {_WAIT} seconds.")
            time.sleep(_WAIT)
    raise AssertionError("unreachable")


def check_repo_id(repo_id: str) -> None:
    """Raises `ClipDomainError` for what cannot be a repository's name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ClipDomainError(f"--repo_id {repo_id}: expected owner/name, as on the Hub. {error}") from error


def resolve_repo_id(repo_id: str | None, folder: Path, token: str | None = None) -> str:
    """The whole name of the repository to push to, after asking the Hub who is logged in; before a run spends hours.

    Raises:
        ClipDomainError: nobody is logged in, or the Hub cannot be reached.
    """
    name = repo_id or re.sub(r"[^\w.-]+", "-", folder.resolve().name)
    check_repo_id(name)
    try:
        with _explained(name, folder, token):
            user = HfApi(token=token).whoami()["name"]
    except _BrokenOff as error:
        raise ClipDomainError(f"{error} Leave out --push_to_hub, and push when the Hub can be reached.") from error
    return name if "/" in name else f"{user}/{name}"


def _commit(
    api: HfApi, publication: Publication, repo_id: str, message: str, private: bool | None, revision: str | None
) -> str:
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    stale = publication.stale(api.list_repo_files(repo_id, revision=revision))
    operations = [
        *(CommitOperationAdd(name, file) for name, file in publication.files.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


class _BrokenOff(Exception):
    """The connection failed: worth another attempt."""


@contextmanager
def _explained(repo_id: str, folder: Path, token: str | None) -> Iterator[None]:
    """One sentence for what the Hub or the way to it raises, without the token and without signed addresses."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ClipDomainError(f"{repo_id} cannot be reached: HF_HUB_OFFLINE is set.") from error
    except LocalTokenNotFoundError as error:
        raise ClipDomainError("nobody is logged in: `hf auth login`, with a token that may write.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            raise ClipDomainError(
                f"the Hub lets you not write to {repo_id} ({status}): log in with `hf auth login`, with a token that may "
                "write there."
            ) from error
        reason = _cleaned(error, token)
        if isinstance(error, BadRequestError) or (status is not None and 400 <= status < 500 and status != 429):
            raise ClipDomainError(f"the Hub refuses {folder} ({status}): {reason}") from error
        raise _BrokenOff(f"The Hub failed ({status}): {reason}.") from error
    except ValueError as error:  # metadata of the card that the Hub does not know
        raise ClipDomainError(f"the Hub refuses {folder}: {_cleaned(error, token)}") from error
    except (OSError, RuntimeError) as error:
        raise _BrokenOff(f"The connection to {constants.ENDPOINT} failed: {_cleaned(error, token)}.") from error
    except Exception as error:
        if type(error).__module__.startswith(
            ("httpx", "httpcore")
        ):  # the HTTP library is no dependency of this package
            raise _BrokenOff(f"The connection to {constants.ENDPOINT} failed: {_cleaned(error, token)}.") from error
        raise


def _without_signatures(record: logging.LogRecord) -> bool:
    record.msg, record.args = _SIGNATURE.sub(r"\1", record.getMessage()), None
    return True


def _cleaned(error: Exception, token: str | None) -> str:
    """The first line of an error, without token or the signatures that addresses of uploads carry."""
    text = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
    text = _SIGNATURE.sub(r"\1", text)
    text = re.sub(r"hf_\w{8,}", "hf_...", text)
    return (text.replace(token, "...") if token else text).rstrip(".")
