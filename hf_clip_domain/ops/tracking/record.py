"""What is recorded of a run: its settings as flat parameters, without secrets."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from typing import Any

# Names of settings that hold a secret or often do (an address to notify may carry a token).
_SECRET = re.compile(r"(^|_)token$|secret|password|passwd|credential|api_?key|private_?key|^notify$", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
# Tokens as the Hub, GitHub, Amazon, OpenAI and Slack write them, wherever they stand.
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,})"
)
HIDDEN = "(hidden)"


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.0: text`, secrets hidden; what is `None` or empty is left out.

    Args:
        value: dataclasses, mappings, sequences and plain values.
        prefix: of every name.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for name, inner in value.items():
            path = f"{prefix}.{name}" if prefix else str(name)
            if _SECRET.search(str(name)) and isinstance(inner, str):
                found[path] = HIDDEN
            else:
                found |= flatten(inner, path)
        return found
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        return flatten({str(index): item for index, item in enumerate(value)}, prefix)
    if value is None or value == [] or value == ():
        return {}
    return {prefix: without_secrets(str(value))}


def without_secrets(text: str) -> str:
    """`text` without user names and passwords in addresses, and without what looks like a token."""
    return _TOKEN.sub(HIDDEN, _USER_IN_ADDRESS.sub(f"{HIDDEN}@", text))


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those entries of a log that are numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
