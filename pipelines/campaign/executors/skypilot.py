"""Arms as managed jobs of SkyPilot on rented machines, such as Vast.ai: clone a commit, install, run, tear down.

A machine gets one arm and one lease: `timeout` ends the arm there when its lease is over, and the end of a managed
job tears the machine down. SkyPilot may restart a job elsewhere; an attempt that has begun before does nothing.
"""

import math
import os
import shlex
import subprocess
from typing import Any

from pipelines.campaign.arm import ArmPlan
from pipelines.campaign.executors.base import JobState
from pipelines.campaign.spec import CampaignError, CampaignSpec
from pipelines.ingest.default_cohort import EMBEDDED
from pipelines.runtime.extras import load_extra
from pipelines.runtime.interrupts import GRACE_S
from pipelines.runtime.paths import git

_AT_ONCE = 4
_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_COHORT = "~/dinox_cohort"


class SkyPilotExecutor:
    """Rented machines."""

    poll_s = 30.0  # Polling the job controller is slow.

    def __init__(self, spec: CampaignSpec, parallel: int) -> None:
        """Check everything that a rented machine will need.

        Raises:
            CampaignError: If the commit cannot be cloned there, the cohort cannot be pulled, or no cloud is enabled.
            MissingPackageError: If SkyPilot is not installed.
        """
        self.spec = spec
        self.repository, self.commit = deployable_commit()
        if not spec.resources.accelerator and spec.resources.gpus:
            raise CampaignError("resources.accelerator must name the GPU to rent, such as RTX4090")
        if spec.cohort not in EMBEDDED and not spec.resources.cohort_uri:
            raise CampaignError(
                f"a rented machine has no {spec.cohort}; set resources.cohort_uri, such as s3://bucket/cohort"
            )
        self.sky = load_extra("sky", "cloud")
        if not self.sky.get(load_extra("sky.client.sdk", "cloud").enabled_clouds()):
            raise CampaignError("SkyPilot has credentials for no cloud; `sky check` explains how to set them")
        self.parallel = parallel or _AT_ONCE

    def submit(self, plan: ArmPlan) -> str:
        """Launch a managed job."""
        task = self.sky.Task.from_yaml_config(task_config(self.spec, plan, self.repository, self.commit))
        job_ids, _ = self.sky.get(self.sky.jobs.launch(task, name=_name(plan.name)))
        return str(job_ids[0])

    def find(self, name: str) -> str:
        """Look for a job of this name that has not ended."""
        return next((str(row["job_id"]) for row in self._queue() if row["job_name"] == _name(name)), "")

    def poll(self, handle: str) -> JobState:
        """Return the controller's state of the job; one that it does not list has ended."""
        row = next((row for row in self._queue() if str(row["job_id"]) == handle), None)
        if row is None:
            return "ended"
        return "pending" if row["status"].name == "PENDING" else "running"

    def cancel(self, handle: str) -> None:
        """Cancel the job, which tears its machine down."""
        self.sky.get(self.sky.jobs.cancel(job_ids=[int(handle)]))

    def logs(self, handle: str) -> str:
        """Return the command that shows the log, which the controller keeps."""
        return f"sky jobs logs {handle}"

    def _queue(self) -> list[Any]:
        try:
            found = self.sky.get(self.sky.jobs.queue(refresh=False, skip_finished=True, version=2))
        except self.sky.exceptions.ClusterNotUpError:
            return []  # The controller stops when it has no jobs.
        return list(found[0])


def _name(name: str) -> str:
    return f"dinox-{name}"


def task_config(spec: CampaignSpec, plan: ArmPlan, repository: str, commit: str) -> dict[str, Any]:
    """Return the task of one arm, as in a SkyPilot YAML file."""
    needs = spec.resources
    resources: dict[str, Any] = {"cpus": f"{needs.cpus}+", "memory": f"{needs.memory_gb:g}+"}
    if needs.gpus:
        resources["accelerators"] = f"{needs.accelerator}:{needs.gpus}"
    if needs.infra:
        resources["infra"] = needs.infra
    setup = [
        "set -e",
        f"test -d ~/dinox-ct || git clone {shlex.quote(repository)} ~/dinox-ct",
        f"cd ~/dinox-ct && git checkout --quiet {commit}",
        # Images of rented machines often bring an older Python than this project needs, or one without venv; uv
        # fetches the right one. SkyPilot leaves its own uv in ~/.local/bin; a machine without it has pip.
        'export PATH="$HOME/.local/bin:$PATH"',
        "command -v uv || python3 -m pip install --quiet --user uv",
        "test -d .venv || uv venv --quiet --python 3.11 .venv",
        "uv pip install --quiet --python .venv/bin/python --editable .",
    ]
    mounts, cohort = {}, shlex.quote(spec.cohort)
    run = ["set -e", "cd ~/dinox-ct"]
    if needs.cohort_uri:
        mounts = {"file_mounts": {_COHORT: needs.cohort_uri}}
        run += [f'mkdir -p "$(dirname {cohort})"', f"ln -sfn {_COHORT} {cohort}"]
    limit = f"timeout --kill-after={GRACE_S:.0f} {math.ceil(plan.lease_s + 2 * GRACE_S)}"
    run.append(f"{limit} .venv/bin/python -m pipelines.campaign.arm")
    return mounts | {
        "name": _name(plan.name),
        "resources": resources,
        "setup": "\n".join(setup),
        "run": "\n".join(run),
        "envs": {"DINOX_PLAN": plan.to_json()},
        "secrets": {name: os.environ[name] for name in _SECRETS if os.environ.get(name)},
    }


def deployable_commit() -> tuple[str, str]:
    """Return the repository's address and the commit that a rented machine can clone.

    Raises:
        CampaignError: If files differ from the commit, or the commit is not in the repository that `origin` names.
    """
    try:
        if git("status", "--porcelain", "--untracked-files=no"):
            raise CampaignError(
                "files differ from the last commit, and a rented machine gets a commit; commit them first"
            )
        commit, address = git("rev-parse", "HEAD"), git("remote", "get-url", "origin")
        is_there = bool(git("branch", "--remotes", "--contains", commit))
    except (OSError, subprocess.CalledProcessError) as error:
        raise CampaignError(
            "a rented machine clones this project by git: its folder must be a repository with a remote 'origin'"
        ) from error
    if not is_there:
        raise CampaignError(f"commit {commit[:12]} is not on a branch of origin; push it first")
    if "@" in address and "://" in address:
        raise CampaignError(
            "the address of origin holds a user or password, which would be sent to a rented machine; use a plain one"
        )
    if "@" in address:
        raise CampaignError(
            f"the address of origin, {address}, needs an SSH key, which a rented machine lacks; use an https one"
        )
    return address, commit
