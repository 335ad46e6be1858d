"""One command line in several processes of this machine; torch is imported only then."""

import logging
import os
import sys
import uuid

from pipelines.runtime.interrupts import GRACE_S, end_with_parent
from pipelines.runtime.parallel import available_cores


def launch(arguments: list[str], nproc: int) -> int:
    """Run `python ARGUMENTS` in `nproc` processes and return the exit code of the first that failed, or 0.

    A signal to this process is forwarded to all, and they may take `GRACE_S` to save. torchrun itself would always
    end with 1 and hide our error message below a long report.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(available_cores() // nproc, 1)))
    end_with_parent()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        monitor_interval=0.2,
        max_restarts=0,
        shutdown_timeout=int(GRACE_S),
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return abs(first.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
