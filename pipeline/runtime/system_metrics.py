"""System metrics of a worker's machine, under the names of MLflow's own monitor, so that its UI has a page for them.

That monitor connects to the tracker from where it runs, and here the driver alone does. So a sample is taken when a
trial reports, and is logged with its other metrics.
"""

from __future__ import annotations

import contextlib
import tempfile

import psutil
import torch

__all__ = ["SystemMetrics"]

_MEGA = 1e6


class SystemMetrics:
    """System metrics of a worker's machine, with everything that runs on it.

    Args:
        device: The worker's device.

    Example:
        >>> sorted(SystemMetrics(torch.device("cpu")).sample())[:2]
        ['cpu_utilization_percentage', 'disk_available_megabytes']
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The next call measures from here on; the value of the first means nothing.
        psutil.cpu_percent()
        if device.type == "cuda":
            # That of an earlier trial of this process is no peak of this one.
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> dict[str, float]:
        """Return what is in use: of the processors since the last sample, of a GPU in the last second, of the rest now.

        Returns:
            ``cpu_utilization_percentage``; ``system_memory_usage_percentage`` and ``..._megabytes``; of the disk with
            temporary files, which is where Ray works, ``disk_usage_percentage``, ``disk_usage_megabytes`` and
            ``disk_available_megabytes``; of the worker's GPU, if it has one, ``gpu_0_utilization_percentage``,
            ``gpu_0_memory_usage_percentage`` and ``..._megabytes``. A megabyte is a million bytes.
        """
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(tempfile.gettempdir())
        metrics = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGA,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGA,
            "disk_available_megabytes": disk.free / _MEGA,
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            metrics["gpu_0_memory_usage_megabytes"] = (total - free) / _MEGA
            metrics["gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
            # A part of a GPU has no such number, and a driver has errors of its own.
            with contextlib.suppress(Exception):
                metrics["gpu_0_utilization_percentage"] = float(torch.cuda.utilization(self._device))
        return metrics

    def peak(self) -> dict[str, float]:
        """Return ``gpu_0_peak_memory_percentage``, the most that the worker's tensors have had; nothing on the CPU."""
        if self._device.type != "cuda":
            return {}
        total = torch.cuda.mem_get_info(self._device)[1]
        return {"gpu_0_peak_memory_percentage": 100 * torch.cuda.max_memory_allocated(self._device) / total}
