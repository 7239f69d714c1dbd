"""Runs command lines that are killed, stopped or starved at a chosen point; one JSON job a line, one answer a line.

Started by ``runs.Killer``, which says what a disturbance is.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from eckart.cli import main
from eckart.model import journal

COPIES = sys.platform.startswith("linux")
# What commands import only when they run; loaded here, it takes its seconds once and not in every copy of this process.
HEAVY = ("eckart.api", "transformers.models.llama.modeling_llama")


def disturb(what: dict[str, Any]) -> None:
    """Put the disturbance in place, in the process that is to suffer it."""
    if "largest_file" in what:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (what["largest_file"], what["largest_file"]))
    if "function" not in what:
        return
    module_name, _, path = what["function"].partition(":")
    *outer, leaf = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for name in outer:
        owner = getattr(owner, name)
    function, calls = getattr(owner, leaf), 0

    def strike() -> None:
        os.kill(os.getpid(), getattr(signal, what.get("signal", "SIGKILL")))

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if what.get("argument") not in (None, *args[1:]):
            return function(*args, **kwargs)
        calls += 1
        if calls == what["call"] and what["when"] == "before":
            strike()
        if calls == what["call"] and what["when"] == "torn":
            _, handle, entry = args
            line = journal._sealed(entry)
            handle.write(line[: len(line) // 2])
            handle.flush()
            strike()
        result = function(*args, **kwargs)
        if calls == what["call"] and what["when"] == "after":
            strike()
        return result

    setattr(owner, leaf, disturbed)


def run(job: dict[str, Any], out: int, err: int) -> None:
    """Become the command; does not return."""
    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["eckart", *job["arguments"]]
        disturb(job["disturbance"])
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a process of its own; how it ended and what it said."""
    if not COPIES:
        command = [sys.executable, str(Path(__file__)), json.dumps(job)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr}
    (read_out, out), (read_err, err) = os.pipe(), os.pipe()  # no files: their size may be what is limited
    child = os.fork()
    if not child:
        run(job, out, err)
    os.close(out)
    os.close(err)
    with open(read_out, encoding="utf-8") as told, open(read_err, encoding="utf-8") as failed:
        texts = {"out": told.read(), "err": failed.read()}
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), **texts}


def serve() -> None:
    """Run the jobs that come in, one after another."""
    torch.set_num_threads(1)
    for module in HEAVY:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(json.loads(sys.argv[1]), 1, 2)
    serve()
