"""Runs command lines that may only take so much memory more than Python and torch took; otherwise as ``killed``."""

import json
import resource
import sys
from typing import Any

import killed
import torch


def limit(what: dict[str, Any]) -> None:
    """Let this process take only so many bytes more."""
    with open("/proc/self/status", encoding="ascii") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + what["memory"],) * 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed.disturb = limit
    for line in sys.stdin:
        print(json.dumps(killed.answer(json.loads(line))), flush=True)
