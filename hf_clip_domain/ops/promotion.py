"""Which version of a registered model is its champion: the alias that servers follow, moved forward and back.

The alias is moved last, after everything that tells of the move, so that a step that was cut off is repeated whole;
the champion before is a tag of the registered model, and a decision's figures are tags of the version decided on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.report import without_nan
from hf_clip_domain.ops.gate import Check
from hf_clip_domain.ops.registry import Version, check_name, find, registry_client

CHAMPION = "champion"
PREVIOUS_TAG = "champion.previous"
DECISION_TAG, TIME_TAG, RECORD_TAG = "promotion.decision", "promotion.time", "promotion.record"
SINCE_TAG, LEFT_TAG = "champion.since", "champion.rolled_back"  # of a version: became it; was gone back from
PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled back"


@dataclass(frozen=True)
class Decision:
    """What the gate said of a candidate; `promotion.json` is one.

    Attributes:
        name: of the registered model.
        candidate, incumbent: numbers of versions; the candidate's is empty for a folder that is not registered (a dry
            run), the incumbent's where there was no champion.
        decision: `promoted`, `refused` or `rolled back`.
        checks: the conditions.
        settings: on what and by which limits it was decided.
        dry_run: nothing was changed.
        time: UTC.
    """

    name: str
    candidate: str
    incumbent: str
    decision: str
    checks: list[Check]
    settings: dict[str, Any]
    dry_run: bool
    time: str

    @classmethod
    def of(cls, name: str, candidate: str, incumbent: str, checks: Sequence[Check], **more: Any) -> Decision:
        """Promoted unless a check failed."""
        failed = any(check.passed is False for check in checks)
        return cls(name, candidate, incumbent, REFUSED if failed else PROMOTED, list(checks), time=now(), **more)

    def to_json(self) -> str:
        """Without what is no number."""
        return json.dumps(without_nan(asdict(self)), indent=2, ensure_ascii=False) + "\n"


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def champion(name: str) -> Version | None:
    """The version that serves, if there is one.

    Raises:
        ClipDomainError: the registry cannot be asked.
    """
    return find(name, alias=CHAMPION)


def record(version: Version, decision: Decision) -> None:
    """The decision on the version: `promotion.decision`, a sentence a check, and the whole as `promotion.record`."""
    tags = {DECISION_TAG: decision.decision, TIME_TAG: decision.time}
    tags |= {f"promotion.{check.name}": check.told for check in decision.checks}
    whole = json.dumps(json.loads(decision.to_json()), ensure_ascii=False)
    if len(whole) <= 5000:  # as much as the registry's databases take
        tags[RECORD_TAG] = whole
    _tag(version, tags)


def move_champion(version: Version, incumbent: Version | None) -> None:
    """Let the alias mean `version`, and remember `incumbent`.

    Raises:
        ClipDomainError: the champion is no longer the one that the candidate was compared with.
    """
    found = champion(version.name)
    if (found and found.number) != (incumbent and incumbent.number):
        raise ClipDomainError(
            f"{version.name} has another champion than when the comparison began: promote again, against that one."
        )
    _tag(version, {SINCE_TAG: now()})
    with registry_client() as client:
        if incumbent is not None:
            client.set_registered_model_tag(version.name, PREVIOUS_TAG, incumbent.number)
        client.set_registered_model_alias(version.name, CHAMPION, version.number)


def previous(name: str) -> str | None:
    """Number of the champion before the present one.

    Raises:
        ClipDomainError: no such model, or the registry cannot be asked.
    """
    with registry_client() as client:
        return client.get_registered_model(name).tags.get(PREVIOUS_TAG)


def find_return(name: str, to: str | None = None) -> tuple[Version, Version]:
    """The champion, and the version that a rollback makes it: the champion before, or `to`; the same where that is done.

    Raises:
        ClipDomainError: there is no champion, none before, or `to` never was one.
    """
    check_name(name)
    current = champion(name)
    if current is None:
        raise ClipDomainError(f"{name} has no {CHAMPION}: there is nothing to go back from.")
    number = to or previous(name)
    if number is None:
        raise ClipDomainError(f"version {current.number} of {name} is its first {CHAMPION}: there is none before.")
    target = find(name, number=number)
    if target is None:
        raise ClipDomainError(f"{name} has no version {number}.")
    if SINCE_TAG not in target.tags:
        raise ClipDomainError(f"version {number} of {name} has never been its {CHAMPION}: promote it.")
    return current, target


def roll_back(current: Version, target: Version) -> None:
    """Let the alias mean `target` again; a further rollback has then nowhere to go.

    Raises:
        ClipDomainError: the registry refuses.
    """
    _tag(current, {LEFT_TAG: f"{now()} to version {target.number}"})
    _tag(target, {SINCE_TAG: now()})
    with registry_client() as client:
        if LEFT_TAG in target.tags:
            client.delete_model_version_tag(target.name, target.number, LEFT_TAG)
        client.set_registered_model_tag(target.name, PREVIOUS_TAG, target.number)
        client.set_registered_model_alias(target.name, CHAMPION, target.number)


def _tag(version: Version, tags: Mapping[str, str]) -> None:
    with registry_client() as client:
        for name, value in tags.items():
            client.set_model_version_tag(version.name, version.number, name, value[:5000])
