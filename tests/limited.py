"""Runs command lines that may only take so much memory more than Python, torch and transformers took; otherwise as ``killed``."""

import resource
from typing import Any

import killed


def limit(what: dict[str, Any]) -> None:
    """Let this process take only so many bytes more."""
    with open("/proc/self/status", encoding="ascii") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + what["memory"],) * 2)


if __name__ == "__main__":
    killed.disturb = limit
    killed.serve()
