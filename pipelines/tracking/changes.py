"""What a resumed run changed of its settings, with leave (`allow_changes`): from what, to what, at which step."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.tracking.names import Tag


@dataclass(frozen=True, slots=True)
class Change:
    """One option that has another value from a step on.

    Attributes:
        step: Updates that were made before.
        before: Value until then, as JSON holds it.
        after: Value since then.
    """

    step: int
    key: str
    before: Any
    after: Any


def changes_text(changes: Sequence[Change]) -> str:
    """Return changes as the text of `Tag.CHANGES`."""
    return json.dumps([asdict(change) for change in changes])


def changes_of(tags: Mapping[str, str]) -> list[Change]:
    """Return what the tags of a run say was changed, oldest first."""
    return [Change(**one) for one in json.loads(tags.get(Tag.CHANGES) or "[]")]


def changes_said(changes: Sequence[Change]) -> str:
    """Return changes as a part of a sentence."""
    return ", ".join(f"{one.key} from {one.before} to {one.after} at step {one.step}" for one in changes)


def values_over_time(changes: Sequence[Change]) -> dict[str, str]:
    """Return each changed key with all of its values, such as `0.001; 0.01 from step 40`: it had no single one."""
    told: dict[str, str] = {}
    for one in changes:
        told[one.key] = f"{told.get(one.key, one.before)}; {one.after} from step {one.step}"
    return told
