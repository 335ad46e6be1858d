"""The interface of an executor: what a campaign asks of whatever runs its arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pipelines.campaign.arm import ArmPlan
from pipelines.campaign.spec import ResourcesSpec

JobState = Literal["pending", "running", "ended"]


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at one arm, as an executor sees it."""

    plan: ArmPlan
    resources: ResourcesSpec

    @property
    def name(self) -> str:
        """A name that no other attempt has."""
        return f"{self.plan.run_id}-{self.plan.attempt}"


class Executor(Protocol):
    """Starts arms and says whether they still run; how they ended, the arms themselves write to MLflow.

    Handles are text that another process can use: a campaign that was killed finds its arms again by them.
    """

    @property
    def parallel(self) -> int:
        """How many arms may be under way at once."""

    @property
    def poll_s(self) -> float:
        """Seconds between two looks at the jobs."""

    def submit(self, job: Job) -> str:
        """Start an arm and return the handle of its job."""

    def find(self, name: str) -> str:
        """Return the handle of a job that was submitted by a campaign killed before it knew; "" when there is none."""

    def poll(self, handle: str) -> JobState:
        """Return whether anything of the job still runs or waits to."""

    def cancel(self, handle: str) -> None:
        """Ask the job to save and end; asked again after its time of grace, end it."""

    def logs(self, handle: str) -> str:
        """Return the end of what the job printed."""
