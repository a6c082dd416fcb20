"""Facts about the machine that a figure is worth nothing without."""

import os
import platform
import subprocess
import time
from pathlib import Path


def facts(place: Path) -> dict[str, str]:
    """Of the machine, and of the file system of `place`."""
    file_system = subprocess.run(["stat", "-f", "-c", "%T", str(place)], capture_output=True, text=True, check=True)
    return {
        "processors": f"{os.cpu_count()} x {_field(Path('/proc/cpuinfo'), 'model name')}",
        "memory": f"{int(_field(Path('/proc/meminfo'), 'MemTotal').split()[0]) >> 20} GiB",
        "file system": file_system.stdout.strip(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "date": time.strftime("%F", time.gmtime()),
    }


def _field(file: Path, name: str) -> str:
    """The value of the first line `name : value`."""
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0 (unknown)"
