"""Stage h: where the time of one update goes, by kind of kernel, and how often the host waits for the device."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import WARM_UP, emptied, settle, updates_of
from benchmarks.gpu.updates import ARMS

_KINDS = (
    ("optimizer and moving average", ("multi_tensor", "adam", "foreach", "lerp")),
    ("attention", ("flash", "fmha", "attention", "sdpa", "cudnn_generated")),
    ("matrix products", ("gemm", "cutlass", "xmma", "nvjet", "matmul", "cublas", "mm")),
    ("normalization", ("layer_norm", "layernorm", "norm")),
    ("softmax", ("softmax",)),
    ("copies", ("copy", "memcpy", "memset", "cat")),
)
_WAITS = ("aten::item", "aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")


def measure(setting: Setting) -> Iterator[Figure]:
    """Profile updates of ViT-S/14 at batch 256."""
    emptied(setting.device)
    arm, count = ARMS[1], 1 if setting.is_rehearsal else 4
    update = updates_of(arm.trainer(setting))
    for _ in range(WARM_UP):
        update()
    settle(setting.device)
    is_gpu = setting.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as seen:
        for _ in range(count):
            update()
        settle(setting.device)
    events = seen.key_averages()
    waits = sum(event.count for event in events if event.key in _WAITS)
    note = f"in {count} updates, the one at their end included"
    yield Figure("waits of the host", float(waits) if is_gpu else None, "", note)
    # A kernel's time is also that of the operation that started it; on a GPU kernels alone are counted.
    kernels = [event for event in events if (event.device_type == DeviceType.CUDA) == is_gpu]
    times = {event.key: _own_ms(event, is_gpu) / count for event in kernels}
    total = sum(times.values())
    by_kind = Counter[str]()  # In microseconds.
    for name, ms in times.items():
        by_kind[kind_of(name)] += round(ms * 1e3)
    for kind, us in by_kind.most_common():
        note = f"of the time, {us / 1e3:.2f} ms an update"
        yield Figure(f"{arm.name}: {kind}", us / 1e3 / total if total else None, "", note)
    for name, ms in sorted(times.items(), key=lambda pair: -pair[1])[:8]:
        yield Figure(f"kernel {name[:80]}", ms, "ms", "an update")


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    lower = kernel.lower()
    return next(
        (kind for kind, parts in _KINDS if any(part in lower for part in parts)), "elementwise and other"
    )


def _own_ms(event: Any, is_gpu: bool) -> float:
    return float(event.self_device_time_total if is_gpu else event.self_cpu_time_total) / 1e3
