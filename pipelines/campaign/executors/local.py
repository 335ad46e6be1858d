"""Arms as processes of this machine, a few at a time, each with its own devices.

A job is a folder with a lock file. The lock is taken before the process starts and passed on to it, so it is held
exactly while a process of the arm runs, also after the campaign has ended. `poll` checks this lock.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipelines.campaign.arm import PLAN_ENV, ArmPlan
from pipelines.campaign.executors.base import JobState
from pipelines.campaign.spec import CampaignError, ResourcesSpec
from pipelines.runtime.atomic import exclusively, make_folder, write_text
from pipelines.runtime.interrupts import GRACE_S
from pipelines.runtime.paths import PROJECT_ROOT
from transforms.refusal import number_of

_LOG_TAIL = 4000


class LocalExecutor:
    """Subprocesses of this machine."""

    poll_s = 0.5  # Checking a lock is cheap.

    def __init__(self, resources: ResourcesSpec, parallel: int, folder: Path) -> None:
        """Divide the machine's devices and cores among arms.

        Raises:
            CampaignError: If an arm needs more GPUs than there are.
        """
        self.folder, self.gpus_each = folder, resources.gpus
        self.devices = visible_gpus() if resources.gpus else []
        if resources.gpus > len(self.devices):
            raise CampaignError(
                f"an arm needs {resources.gpus} GPU but this machine has {len(self.devices)}; set resources.gpus to 0,"
                " or choose another executor"
            )
        cores = len(os.sched_getaffinity(0))
        fitting = len(self.devices) // resources.gpus if resources.gpus else cores // max(resources.cpus, 1)
        self._most = parallel or max(fitting, 1)
        if resources.gpus:
            self._most = min(self._most, fitting)
        self.threads = max(cores // self._most, 1)
        self._canceled_at: dict[str, float] = {}
        if others := len(self._running()) - len(self._running_here()):
            shared = (
                "its GPUs are shared out among all" if resources.gpus else "its cores are not divided anew"
            )
            print(f"other campaigns run {number_of(others, 'arm')} on this machine: {shared}")

    @property
    def parallel(self) -> int:
        """Arms of this campaign at the same time: as many as have devices, which other campaigns of here use too."""
        if not self.gpus_each:
            return self._most
        return min(self._most, len(self._running_here()) + len(self._free_devices()) // self.gpus_each)

    def submit(self, plan: ArmPlan) -> str:
        """Start the arm's process, which inherits the job's lock."""
        folder = self.folder / plan.name
        make_folder(folder)
        with exclusively(self.folder.parent / "devices.lock"):
            return self._started(plan, folder, self._free_devices()[: self.gpus_each])

    def _started(self, plan: ArmPlan, folder: Path, devices: list[str]) -> str:
        if len(devices) < self.gpus_each:
            raise CampaignError(
                f"the GPUs of this machine were taken by an arm of another campaign just now; {plan.arm} needs"
                f" {self.gpus_each}, and the same command goes on when they are free"
            )
        with (folder / "lock").open("a", encoding="ascii") as lock, (folder / "log.txt").open("ab") as log:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_text(folder / "devices", ",".join(devices))
            # In a variable: all users can read command lines, and the store's address may hold a password.
            environment = os.environ | {"DINOX_JOB_FILE": str(folder / "pid"), PLAN_ENV: plan.to_json()}
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
            if devices:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.campaign.arm"],
                cwd=PROJECT_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        write_text(folder / "pid", str(process.pid))
        # An arm may outlive this executor; whoever lives on waits for it, so that it is not collected while it runs.
        threading.Thread(target=process.wait, name=f"wait for {plan.name}", daemon=True).start()
        return str(folder)

    def find(self, name: str) -> str:
        """Return the job's folder, or "" if it does not exist."""
        folder = self.folder / name
        return str(folder) if (folder / "lock").is_file() else ""

    def poll(self, handle: str) -> JobState:
        """Return whether the job's lock is held."""
        with contextlib.suppress(FileNotFoundError), (Path(handle) / "lock").open("r+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return "running"
        return "ended"

    def cancel(self, handle: str) -> None:
        """Send SIGTERM; SIGKILL when the grace period has passed."""
        pid = self._pid(handle)
        if self.poll(handle) == "ended" or not pid:
            return
        first = self._canceled_at.get(handle)
        if first is not None and time.monotonic() - first <= GRACE_S:
            return
        self._canceled_at[handle] = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM if first is None else signal.SIGKILL)

    def logs(self, handle: str) -> str:
        """Return the end of the job's log."""
        path = Path(handle) / "log.txt"
        return path.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:] if path.is_file() else ""

    def _pid(self, handle: str) -> int:
        path = Path(handle) / "pid"
        return int(path.read_text(encoding="ascii") or 0) if path.is_file() else 0

    def _running(self) -> list[Path]:
        """Return the folders of the arms that run, of every campaign whose jobs lie beside this one's."""
        jobs = [path.parent for path in self.folder.parent.glob("*/*/devices")]
        return [job for job in jobs if self.poll(str(job)) == "running"]

    def _running_here(self) -> list[Path]:
        return [job for job in self._running() if job.parent == self.folder]

    def _free_devices(self) -> list[str]:
        taken = {
            device
            for job in self._running()
            for device in (job / "devices").read_text(encoding="ascii").split(",")
        }
        return [device for device in self.devices if device not in taken]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, without starting CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device and device != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
