"""The interface of an executor, which runs the arms of a campaign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pipelines.campaign.arm import ArmPlan
from pipelines.campaign.spec import ResourcesSpec

JobState = Literal["pending", "running", "ended"]


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at one arm, for an executor."""

    plan: ArmPlan
    resources: ResourcesSpec

    @property
    def name(self) -> str:
        """Unique name of the attempt."""
        return f"{self.plan.run_id}-{self.plan.attempt}"


class Executor(Protocol):
    """Starts arms and reports whether they still run; the arms themselves write to MLflow how they ended.

    Handles are text that another process can use: by them a restarted campaign finds its arms again.
    """

    @property
    def parallel(self) -> int:
        """Largest number of arms at the same time."""

    @property
    def poll_s(self) -> float:
        """Seconds between two polls of the jobs."""

    def submit(self, job: Job) -> str:
        """Start an arm and return the handle of its job."""

    def find(self, name: str) -> str:
        """Return the handle of a job by its name, if the campaign was killed before storing it; "" if there is none."""

    def poll(self, handle: str) -> JobState:
        """Return whether the job waits, runs or has ended."""

    def cancel(self, handle: str) -> None:
        """Ask the job to save and end; a second call after the grace period ends it."""

    def logs(self, handle: str) -> str:
        """Return the end of the job's printed output."""
