"""Installed versions against those that the package asks for, from the metadata alone: works where imports fail."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PACKAGE = "hf-clip-domain"
# Extras of users; the others are for work on the package itself.
_NOT_OF_USERS = {"dev"}


@dataclass(frozen=True)
class Version:
    """One requirement and what is installed: `found` is `None` where nothing is, `extra` names an optional one's."""

    name: str
    wanted: SpecifierSet
    found: str | None
    extra: str = ""

    @property
    def passed(self) -> bool:
        """An optional package may be missing, but not be too old."""
        if self.found is None:
            return bool(self.extra)
        return self.wanted.contains(self.found, prereleases=True)

    @property
    def advice(self) -> str:
        """The command that mends it, or that brings what is optional; empty where there is nothing to do."""
        if self.name == "python":
            return "" if self.passed else f"Use Python {self.wanted}"
        if self.found is None and self.extra:
            return f'pip install "{PACKAGE}[{self.extra}]"'
        return "" if self.passed else f'pip install "{self.name}{self.wanted}"'


def installed_versions() -> list[Version]:
    """Python, then the package's requirements, then the optional ones; empty where the package is not installed."""
    try:
        metadata = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return []
    versions = [Version("python", SpecifierSet(metadata["Requires-Python"]), platform.python_version())]
    requirements = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    extras = [extra for extra in metadata.get_all("Provides-Extra") or [] if extra not in _NOT_OF_USERS]
    for extra in ("", *extras):
        for requirement in requirements:
            optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
            if optional == bool(extra) and (not optional or requirement.marker.evaluate({"extra": extra})):
                versions.append(Version(requirement.name, requirement.specifier, _found(requirement.name), extra))
    return versions


def _found(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
