"""Arms as Slurm jobs through submitit, which writes the batch script and passes the call on.

squeue reports whether a job still runs. It also lists jobs by name, so a campaign that was killed between submitting
a job and storing its number finds the job again.
"""

import contextlib
import dataclasses
import json
import math
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipelines.campaign import arm
from pipelines.campaign.executors.base import JobState
from pipelines.campaign.spec import CampaignError, ResourcesSpec
from pipelines.runtime.atomic import make_folder, write_text
from pipelines.runtime.extras import load_extra
from pipelines.runtime.interrupts import GRACE_S
from pipelines.runtime.paths import PROJECT_ROOT

_AT_ONCE = 16
_LOG_TAIL = 4000
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"}


class SubmititExecutor:
    """Slurm; or, with `cluster="local"`, submitit's own processes, which test the same code without Slurm."""

    def __init__(
        self,
        resources: ResourcesSpec,
        parallel: int,
        folder: Path,
        cluster: Literal["slurm", "local"] = "slurm",
    ) -> None:
        """Check that Slurm is available.

        Raises:
            CampaignError: If this machine cannot submit to Slurm.
            MissingPackageError: If submitit is not installed.
        """
        self.submitit = load_extra("submitit", "slurm")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise CampaignError(
                "executor submitit needs Slurm's sbatch on this machine; run it on a login node"
            )
        self.resources, self.folder, self.cluster = resources, folder / "submitit", cluster
        self.parallel = parallel or _AT_ONCE
        self.poll_s = 10.0 if cluster == "slurm" else 0.5  # The load on Slurm's controller must stay low.
        self._jobs: dict[str, Any] = {}
        self._queue: dict[str, tuple[str, str]] = {}
        self._queue_at = -math.inf

    def submit(self, plan: arm.ArmPlan) -> str:
        """Submit one arm; its time limit is its lease."""
        needs = self.resources
        executor = self.submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        executor.update_parameters(
            name=plan.name,
            timeout_min=math.ceil((plan.lease_s + 2 * GRACE_S) / 60.0),
            cpus_per_task=needs.cpus,
            gpus_per_node=needs.gpus,
            mem_gb=needs.memory_gb,
        )
        root, here = shlex.quote(str(PROJECT_ROOT)), shlex.quote(os.getcwd())
        setup = [f"export PYTHONPATH={root}:$PYTHONPATH", f"cd {here}"]
        executor.update_parameters(**{f"{self.cluster}_setup": setup})
        if needs.partition:
            executor.update_parameters(slurm_partition=needs.partition)
        try:
            with _for_this_user_alone():
                submitted = executor.submit(arm.main, self._without_environment(plan).to_json())
        except self.submitit.core.utils.FailedJobError as error:
            raise CampaignError(
                f"Slurm does not accept arm {plan.arm}: {' '.join(str(error).split())}; correct resources in the"
                " campaign's file, then the same command continues it"
            ) from error
        self._jobs[submitted.job_id] = submitted
        self._queue_at = -math.inf
        return str(submitted.job_id)

    def _without_environment(self, plan: arm.ArmPlan) -> arm.ArmPlan:
        """Return a plan that names a file with its environment: a store's address may hold a password."""
        make_folder(self.folder)
        self.folder.chmod(0o700)
        file = self.folder / f"{plan.name}.environment.json"
        write_text(file, json.dumps(plan.environment), mode=0o600)
        return dataclasses.replace(plan, environment={}, environment_file=str(file))

    def find(self, name: str) -> str:
        """Ask Slurm for a job of this name."""
        return next((job_id for job_id, (_, own) in self._asked().items() if own == name), "")

    def poll(self, handle: str) -> JobState:
        """Return squeue's state of the job; one that it does not list has ended."""
        if self.cluster == "local":
            return "ended" if self._jobs[handle].done() else "running"
        listed = self._asked().get(handle)
        if listed is None:
            return "ended"
        return "pending" if listed[0] in _WAITING else "running"

    def cancel(self, handle: str) -> None:
        """Cancel the job: Slurm sends SIGTERM, waits, and ends it."""
        if self.cluster == "slurm":
            subprocess.run(["scancel", handle], check=False, capture_output=True)
        else:
            self._jobs[handle].cancel()

    def logs(self, handle: str) -> str:
        """Return the end of the job's output."""
        paths = self.submitit.core.utils.JobPaths(self.folder, job_id=handle)
        texts = [path.read_text(errors="replace") for path in (paths.stdout, paths.stderr) if path.is_file()]
        return "".join(texts)[-_LOG_TAIL:]

    def _asked(self) -> dict[str, tuple[str, str]]:
        """Return (state, name) of every job of this user, refreshed at most every few seconds."""
        if self.cluster == "local":
            return {}
        if time.monotonic() - self._queue_at > self.poll_s / 2:
            rows = [line.split("|", 2) for line in _squeue().splitlines() if line]
            self._queue = {job_id: (state, name) for job_id, state, name in rows}
            self._queue_at = time.monotonic()
        return self._queue


@contextlib.contextmanager
def _for_this_user_alone() -> Iterator[None]:
    """Let what submitit writes, a pickle and a batch script, be read by this user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _squeue() -> str:
    for pause_s in (5.0, 15.0, 45.0, 0.0):
        asked = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i|%T|%j"], capture_output=True, text=True
        )
        if asked.returncode == 0:
            return asked.stdout
        time.sleep(pause_s)
    # Without an answer it is unknown which jobs have ended, and no arm may be started twice.
    raise CampaignError(
        "squeue does not answer; running arms continue by themselves, and the same command continues the campaign"
    )
