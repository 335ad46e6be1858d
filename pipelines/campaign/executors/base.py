"""The interface of an executor, which runs the arms of a campaign."""

from typing import Literal, Protocol

from pipelines.campaign.arm import ArmPlan

JobState = Literal["pending", "running", "ended"]


class Executor(Protocol):
    """Starts arms and reports whether they still run; the arms themselves write to MLflow how they ended.

    Handles are text that another process can use: by them a restarted campaign finds its arms again.
    """

    poll_s: float
    """Seconds between two polls of the jobs."""

    @property
    def parallel(self) -> int:
        """Largest number of arms at the same time; 0 while others use every device that one needs."""

    def submit(self, plan: ArmPlan) -> str:
        """Start an arm and return the handle of its job."""

    def find(self, name: str) -> str:
        """Return the handle of a job by its name, if the campaign was killed before storing it; "" if there is none."""

    def poll(self, handle: str) -> JobState:
        """Return whether the job waits, runs or has ended."""

    def cancel(self, handle: str) -> None:
        """Ask the job to save and end; a second call after the grace period ends it."""

    def logs(self, handle: str) -> str:
        """Return the end of the job's printed output."""
