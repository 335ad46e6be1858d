"""The interface of a proposer, and the check that a proposal lies in the search space."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.campaign.spec import ProposerSpec
from transforms.refusal import Refusal


class ProposalError(Refusal):
    """A proposal cannot be run; one sentence gives the reason."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """An arm that a proposer suggests.

    Attributes:
        overrides: Keys of the space with a value each.
        hypothesis: Reason for it.
    """

    overrides: dict[str, Any]
    hypothesis: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """State and result of one proposed arm.

    Attributes:
        value: The endpoint; None while it runs, or when it ended without one.
        curve: (step, value) of the in-run metric.
        state: running, finished, pruned or failed.
    """

    name: str
    overrides: Mapping[str, Any]
    hypothesis: str
    state: str
    value: float | None
    curve: Sequence[tuple[int, float]] = field(default=())


class Proposer(Protocol):
    """Adds arms one at a time."""

    def propose(self, outcomes: Sequence[Outcome]) -> Proposal | None:
        """Return the next arm, or None when nothing more is worth trying.

        Raises:
            ProposalError: If the answer is not a valid arm; it is logged, and the proposer is asked again later.
        """

    def to_prune(self, outcomes: Sequence[Outcome]) -> list[str]:
        """Return the names of running arms that should be stopped."""


def inside_space(proposer: ProposerSpec, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides if every one lies in the space.

    Raises:
        ProposalError: For a key or a value outside.
    """
    if not overrides:
        raise ProposalError("the proposal changes nothing")
    for key, value in overrides.items():
        bounds = proposer.space.get(key)
        if bounds is None:
            raise ProposalError(f"key {key!r:.80} is not in the space of this campaign")
        if "choices" in bounds:
            if not any(value == choice and type(value) is type(choice) for choice in bounds["choices"]):
                raise ProposalError(f"{key} was given {value!r:.80}; it may be one of {bounds['choices']}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
            raise ProposalError(f"{key} was given {value!r:.80}, which is not a number")
        elif not bounds["low"] <= value <= bounds["high"]:
            raise ProposalError(
                f"{key} was given {value!r:.80}; it may lie in {bounds['low']:g} .. {bounds['high']:g}"
            )
    return dict(overrides)
