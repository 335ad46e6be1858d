"""Print one table of all benchmarks: `python -m benchmarks`, or `python -m benchmarks views loading` for some.

Every module of this folder that has a function `measure()` takes part. Figures are ratios against a peer in the
same process; the machine stands above the table, because even ratios depend on it.
"""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import iter_modules

import torch

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


def verdict(ratio: float, target: str) -> str:
    """Whether a ratio meets a target like ">= 7" or "<= 1.5"; empty where there is none."""
    if not target:
        return ""
    relation, _, bound = target.partition(" ")
    is_met = ratio >= float(bound) if relation == ">=" else ratio <= float(bound)
    return "met" if is_met else "missed"


def main(chosen: list[str]) -> None:
    """Measure the chosen modules, or all, and print the table as Markdown."""
    names = sorted(
        module.name for module in iter_modules([str(Path(__file__).parent)]) if module.name != "__main__"
    )
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(names)}")
    print(machine(), end="\n\n", flush=True)
    print("| benchmark | measured | ratio | target | | |\n|---|---|---|---|---|---|", flush=True)
    for name in chosen or names:
        measure = getattr(import_module(f"benchmarks.{name}"), "measure", None)
        for line in measure() if measure else []:
            ratio, target = float(line["ratio"]), str(line["target"])
            cells = (name, line["name"], f"{ratio:.3g}", target, verdict(ratio, target), line["unit"])
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
