"""Packages that only some tasks need."""

from __future__ import annotations

import importlib
from types import ModuleType

from hf_clip_domain.errors import ClipDomainError


def require(package: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ClipDomainError: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ClipDomainError(
            f'this needs {package}, which is not installed: pip install "hf-clip-domain[{extra}]"'
        ) from error
