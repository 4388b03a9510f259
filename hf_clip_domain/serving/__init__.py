"""A FastAPI service around one dual encoder, and its client; imports nothing of the training stack.

The client's names are imported when first used: a program that only asks a server needs neither torch nor FastAPI.
"""

import importlib

_CLIENT = (
    "Client",
    "AsyncClient",
    "Retries",
    "ServingError",
    "RefusedError",
    "UnauthorizedError",
    "OverloadedError",
    "TimedOutError",
    "UnreachableError",
)
__all__ = list(_CLIENT)


def __getattr__(name: str):
    if name not in _CLIENT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.client"), name)
