"""What a table must say about where and with what it was made."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import torch
import transformers

import eckart


def facts() -> dict[str, object]:
    """Commit, processor, BLAS, threads and versions."""
    root = Path(__file__).parent.parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "src"], cwd=root, capture_output=True, text=True, check=False
    ).stdout
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {
        "commit": commit.strip() + (" with changes in src" if dirty.strip() else ""),
        "processor": _processor(),
        "blas": blas.group(1) if blas else "unknown",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "eckart": eckart.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()
