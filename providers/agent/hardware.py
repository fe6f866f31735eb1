"""What this machine is made of, and what its accelerators have used."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

try:
    import pynvml
except ImportError:  # pragma: no cover - the extra always has it; a source install may not
    pynvml = None


def detect_hardware() -> dict[str, Any]:
    """CPU, memory and accelerators. An accelerator figure that the driver does not give is null."""
    return {
        "cpu_model": _cpu_model(),
        "cpu_architecture": platform.machine(),
        "cpu_cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "cpu_threads": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "operating_system": f"{platform.system()} {platform.release()}",
        "accelerators": _accelerators(),
    }


def energy_millijoules() -> int | None:
    """Energy that all accelerators together have used since their driver was loaded; None where nothing
    counts it.
    """
    with _nvml() as devices:
        readings = [_ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, device) for device in devices]
    if not readings or any(reading is None for reading in readings):
        return None
    return sum(int(reading) for reading in readings)


def _accelerators() -> list[dict[str, Any]]:
    """One entry per model and memory size, with their count."""
    with _nvml() as devices:
        if not devices:
            return []
        driver = _text(_ask(pynvml.nvmlSystemGetDriverVersion))
        groups: dict[tuple[Any, ...], int] = {}
        for device in devices:
            memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, device)
            limit = _ask(pynvml.nvmlDeviceGetPowerManagementLimit, device)
            name = _text(_ask(pynvml.nvmlDeviceGetName, device))
            group = (name, memory.total if memory is not None else None, limit)
            groups[group] = groups.get(group, 0) + 1
    return [
        {
            "model": name,
            "count": count,
            "memory_bytes": memory,
            "driver": driver,
            "power_limit_milliwatts": limit,
        }
        for (name, memory, limit), count in groups.items()
    ]


@contextmanager
def _nvml() -> Iterator[list[Any]]:
    """Handles of all NVIDIA devices; empty without a driver."""
    if pynvml is None:
        yield []
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield []
        return
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _ask(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except pynvml.NVMLError:  # Not every card answers every question.
        return None


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
