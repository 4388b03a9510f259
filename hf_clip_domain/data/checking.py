"""Every row is looked at before it is used: its picture decodes, and its keys tell what it may not be parted from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Features, Image, List, Value
from tqdm.auto import tqdm

from hf_clip_domain.data.images import check_image
from hf_clip_domain.data.quarantine import Quarantine
from hf_clip_domain.data.rows import Rows
from hf_clip_domain.data.tables import BAD
from hf_clip_domain.errors import ClipDomainError

FEATURES = Features(
    {"image": Image(decode=False), "text": List(Value("string")), "label": Value("string"), "group": Value("string")}
)
_CHUNK = 256


def checked(
    rows: Rows,
    quarantine: Quarantine,
    *,
    progress: bool = False,
    streaming: bool = False,
    own: Callable[[dict[str, Any]], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows that can be used, in order, with the `keys` that bind them; the others go to quarantine.

    Args:
        rows: the source's.
        quarantine: for rows that cannot be used.
        progress: show a bar when it takes longer than two seconds.
        streaming: keep the pictures' bytes, and stop as soon as the share of bad rows is too large.
        own: only these rows; the pictures of others are not decoded.

    Raises:
        ClipDomainError: too many bad rows.
    """
    numbered, seen = iter(rows), 0
    with (
        ThreadPoolExecutor() as pool,  # Pillow decodes without holding the interpreter's lock
        tqdm(total=rows.count(), desc="Checking pairs", unit="row", delay=2, leave=False, disable=not progress) as bar,
    ):
        while chunk := list(islice(numbered, _CHUNK)):
            outcomes = pool.map(lambda row: _inspect(row, own), [row for _, row in chunk])
            for (number, row), outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, str):
                    quarantine.add(number, row.get("file") or (row.get("image") or {}).get("path"), outcome)
                elif outcome is None:
                    continue
                elif streaming or outcome["image"]["bytes"] is None:
                    yield outcome
                else:  # the table keeps the bytes; holding them here too would fill memory
                    yield {**outcome, "image": None}
            seen += len(chunk)
            if streaming:
                quarantine.check(seen, final=False)
            bar.update(len(chunk))
    quarantine.check(seen)


def _inspect(row: dict[str, Any], own: Callable[[dict[str, Any]], bool] | None) -> dict[str, Any] | str | None:
    """The row with its keys, the reason why it cannot be used, or `None` for somebody else's."""
    if BAD in row:
        return row[BAD]
    image = row["image"]
    try:
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        keys = [f"picture:{hashlib.sha256(content).hexdigest()}"]
        if row["group"] is not None:
            keys.append(f"group:{row['group']}")
        row = {**row, "keys": keys}
        if own is not None and not own(row):
            return None
        check_image(image)
    except ClipDomainError as error:
        return str(error)
    except FileNotFoundError:
        return f"{image['path']}: no such file."
    except OSError as error:
        return f"{image['path']}: {error.strerror}."
    return row
