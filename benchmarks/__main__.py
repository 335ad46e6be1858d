"""Print one table of all benchmarks: `python -m benchmarks`, or `python -m benchmarks views loading` for some.

Every module of this folder that has a function `measure(tiny)` takes part; `tiny` is a size that only shows that it
runs. Figures are ratios against a peer in the same process; the machine is named above the table, because even ratios
depend on it.
"""

import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import iter_modules

import torch

from benchmarks.timing import Row

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "monai", "pillow", "pydicom", "SimpleITK")


def machine() -> str:
    """Processor, cores, memory, accelerator and versions, in one paragraph."""
    cpu_info = Path("/proc/cpuinfo")
    models = (
        [line for line in cpu_info.read_text().splitlines() if "model name" in line]
        if cpu_info.exists()
        else []
    )
    cpu = models[0].split(":")[1].strip() if models else platform.processor()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = [f"Python {platform.python_version()}", *_versions()]
    return f"{cpu}, {os.cpu_count()} cores, {memory_gb:.0f} GB memory, accelerator: {device}. {', '.join(versions)}."


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} missing"


def verdict(row: Row) -> str:
    """Whether a ratio meets a target like ">= 7" or "<= 1.5"; empty where there is none."""
    if not row.target:
        return ""
    if row.missing:
        return f"not judged: no {row.missing}"
    relation, _, bound = row.target.partition(" ")
    is_met = row.ratio >= float(bound) if relation == ">=" else row.ratio <= float(bound)
    return "met" if is_met else "missed"


def benchmarks() -> dict[str, Callable[..., Iterable[Row]]]:
    """Every benchmark of this folder by the name of its module."""
    names = sorted(m.name for m in iter_modules([str(Path(__file__).parent)]) if m.name != "__main__")
    modules = {name: import_module(f"benchmarks.{name}") for name in names}
    return {name: module.measure for name, module in modules.items() if hasattr(module, "measure")}


def main(chosen: list[str]) -> int:
    """Measure the chosen benchmarks, or all, and print the table as Markdown; 1 if one failed, after all others."""
    measures = benchmarks()
    unknown = sorted(set(chosen) - set(measures))
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(measures)}")
    print(machine(), end="\n\n", flush=True)
    print("| benchmark | measured | ratio | target | | |\n|---|---|---|---|---|---|", flush=True)
    failed = []
    for name in chosen or measures:
        try:
            for row in measures[name]():
                cells = (name, row.name, f"{row.ratio:.3g}", row.target, verdict(row), row.unit)
                print(f"| {' | '.join(cells)} |", flush=True)
        except Exception:  # One that fails must not hide what the others find.
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
