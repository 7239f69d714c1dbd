"""Plants a seeded sample of bugs in the library, one at a time, and counts how many the fast tests catch.

    make mutants                          200 bugs, an hour on two cores
    make mutants COUNT=50 SEED=7          another sample
    make mutants ONLY='linalg/*'          only in some modules
    make mutants NOTES=notes.jsonl        note every outcome, and go on from there when repeated

First the fast tests run once with coverage, so that each bug is met by the tests that reach its line, some of every test file
first, until one fails. A bug that survives all of them is printed with its line. Survivors that change nothing anybody could
notice are listed with the reason in ``explained.json`` and counted apart. Results: ``benchmarks/results/mutants.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SOURCES = ROOT / "src" / "eckart"
EXPLAINED = Path(__file__).parent / "explained.json"
REPORT = ROOT / "benchmarks" / "results" / "mutants.md"
# What reads the text of the sources or runs other processes only would find every bug, or none.
LEFT_OUT = ("test_style.py", "test_layers.py", "test_docs.py", "test_doctests.py")
LONGEST = 150.0  # seconds of computing for the tests of one bug
SHORT = 5.0  # seconds: files whose tests take less are gone through at once
PATROL = 3  # tests of a longer file that are tried before the rest of any
WAITED = 4  # times as long may pass on the clock, on a machine that does other things as well

sys.path.insert(0, str(Path(__file__).parent))

from plant import Bug, bugs  # noqa: E402


@dataclass(frozen=True)
class Planted:
    """A bug and the file it goes into."""

    file: str  # below the package
    bug: Bug
    text: str  # the line as it was

    def __str__(self) -> str:
        return f"{self.file}:{self.bug.line} [{self.bug.kind}] {self.text.strip()}  ->  {self.bug.instead}"


# ---- which tests reach which lines ----------------------------------------------------------------------------------


class Watch:
    """A pytest plugin that tells coverage which test runs, and notes how long each takes.

    What a module's fixtures do is put down to all tests of the file.
    """

    def __init__(self, coverage: Any) -> None:
        import pytest

        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        watch = self

        class Hooks:
            @pytest.hookimpl(hookwrapper=True)
            def pytest_runtest_setup(self, item: Any) -> Iterator[None]:
                watch.coverage.switch_context(f"file {item.nodeid.partition('::')[0]}")
                yield

            @pytest.hookimpl(hookwrapper=True)
            def pytest_runtest_call(self, item: Any) -> Iterator[None]:
                watch.coverage.switch_context(item.nodeid)
                begun = time.monotonic()
                yield
                watch.seconds[item.nodeid] = time.monotonic() - begun

        self.hooks = Hooks()


def measure(files: list[str], out: str) -> None:
    """Run test files with coverage and write which tests reach which lines. In a process of its own."""
    import coverage
    import pytest

    os.chdir(ROOT)
    measured = coverage.Coverage(data_file=None, source=[str(SOURCES)])
    watch = Watch(measured)
    measured.start()
    code = pytest.main(["-q", "-p", "no:xdist", "-m", "not slow", *files], plugins=[watch.hooks])
    measured.stop()
    if code not in (0, 5):
        raise SystemExit("the tests must pass before bugs are planted")
    data = measured.get_data()
    lines: dict[str, dict[str, list[str]]] = {}
    for path in data.measured_files():
        name = Path(path).relative_to(SOURCES).as_posix()
        lines[name] = {str(line): names for line, names in data.contexts_by_lineno(path).items()}
    Path(out).write_text(json.dumps({"lines": lines, "seconds": watch.seconds}))


def test_files() -> list[str]:
    """The files of the fast tests, below the root."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path.relative_to(ROOT).as_posix() for path in found if path.name not in LEFT_OUT]


def reached(scratch: Path, workers: int) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    """For every file and line the tests that reach it, and the seconds that each test takes."""
    files = test_files()
    shares = [files[i::workers] for i in range(workers)]
    processes = [
        multiprocessing.get_context("spawn").Process(target=measure, args=(share, str(scratch / f"map-{i}.json")))
        for i, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
    lines: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for i in range(workers):
        part = json.loads((scratch / f"map-{i}.json").read_text())
        seconds |= part["seconds"]
        for name, table in part["lines"].items():
            for line, tests in table.items():
                lines.setdefault(name, {}).setdefault(line, []).extend(tests)
    return lines, seconds


def tests_for(planted: Planted, lines: dict[str, dict[str, list[str]]], seconds: dict[str, float]) -> list[str]:
    """The tests that reach the line of a bug; for what runs on import, all that reach its file.

    Files are gone through one after another, since what a file's tests share is set up anew whenever they are returned to: those
    named after the module first, then those that take least. Of files that take longer than ``SHORT`` only the ``PATROL``
    shortest have a turn at first, so that what hundreds of alike tests run through is met by others before these.
    """
    table = lines.get(planted.file, {})
    told = set(table.get(str(planted.bug.line), ())) - {""}
    if not told:
        told = {name for names in table.values() for name in names} - {""}
    whole = {name.removeprefix("file ") for name in told if name.startswith("file ")}
    chosen = {test for test in seconds if test in told or test.partition("::")[0] in whole}
    files: dict[str, list[str]] = {}
    for test in sorted(chosen, key=lambda test: (seconds[test], test)):
        files.setdefault(test.partition("::")[0], []).append(test)
    own = Path(planted.file).stem
    takes = {file: sum(seconds[test] for test in tests) for file, tests in files.items()}
    ordered = sorted(files, key=lambda file: (own not in file, takes[file], file))
    turn = {file: len(files[file]) if takes[file] < SHORT else PATROL for file in ordered}
    first = [test for file in ordered for test in files[file][: turn[file]]]
    return first + [test for file in ordered for test in files[file][turn[file] :]]


# ---- one bug --------------------------------------------------------------------------------------------------------


def meet(planted: Planted, tests: list[str]) -> str:
    """``caught``, ``survives`` or ``undecided``, where neither came out within ``LONGEST``.

    The tests run in a copy of this process, on a copy of the library.
    """
    with tempfile.TemporaryDirectory(prefix="eckart-mutant-") as folder:
        copy = Path(folder) / "src"
        shutil.copytree(SOURCES, copy / "eckart", ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / "eckart" / planted.file
        target.write_text(planted.bug.planted(target.read_text(encoding="utf-8")), encoding="utf-8")
        child = os.fork()
        if not child:
            os.setsid()
            code = 3  # an error on import is one that every test of the module meets
            try:
                code = _run_tests(copy, Path(folder), planted.file, tests)
            finally:
                os._exit(code)
        return _outcome(child)


def _run_tests(copy: Path, folder: Path, file: str, tests: list[str]) -> int:
    import importlib

    import pytest

    sink = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path.insert(0, str(copy))
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    importlib.import_module(f"eckart.{module}".removesuffix(".__init__"))  # what fails here is caught
    options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow", f"--basetemp={folder / 'tmp'}"]
    code = pytest.main([*options, *tests])
    import eckart

    assert eckart.__file__.startswith(str(copy))
    return int(code)


def _outcome(child: int) -> str:
    begun = time.monotonic()
    while time.monotonic() < begun + WAITED * LONGEST and _computed(child, time.monotonic() - begun) < LONGEST:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survives" if os.waitstatus_to_exitcode(status) == 0 else "caught"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "undecided"


def _computed(process: int, passed: float) -> float:
    """Seconds that a process and those that it waited for computed; where that is not told, the seconds that passed."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return passed
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


# ---- the sample -----------------------------------------------------------------------------------------------------


def sample(count: int, seed: int, only: str) -> list[Planted]:
    """A seeded sample of all bugs that can be planted."""
    everything: list[Planted] = []
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        source = path.read_text(encoding="utf-8")
        rows = source.splitlines()
        if fnmatch(name, only):
            everything += [Planted(name, bug, rows[bug.line - 1]) for bug in bugs(source)]
    return random.Random(seed).sample(everything, min(count, len(everything)))


def explanation(planted: Planted) -> str | None:
    """Why a bug that survives changes nothing that anybody could notice, where that was found out."""
    for entry in json.loads(EXPLAINED.read_text()):
        if (entry["file"], entry["kind"]) == (planted.file, planted.bug.kind) and entry["line"] == planted.text.strip():
            return str(entry["reason"])
    return None


def report(results: list[tuple[Planted, str]], seed: int) -> str:
    """The table of results in Markdown."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from machine import facts

    kinds = Counter(outcome for _, outcome in results)
    lines = ["# Planted bugs", "", *(f"{key}: {value}  " for key, value in facts().items()), ""]
    lines += [
        f"Sample of {len(results)} bugs, seed {seed}: " + ", ".join(f"{n} {k}" for k, n in kinds.items()) + ".",
        "",
    ]
    lines += ["| part | planted | not caught |", "|---|---|---|"]
    parts = Counter(planted.file.partition("/")[0] for planted, _ in results)
    missed = Counter(planted.file.partition("/")[0] for planted, outcome in results if outcome != "caught")
    lines += [f"| {part} | {count} | {missed[part]} |" for part, count in sorted(parts.items())]
    survivors = [planted for planted, outcome in results if outcome != "caught"]
    lines += ["", "## Survivors", ""] + [
        f"- `{planted}`" + (f": {explanation(planted)}" if explanation(planted) else "") for planted in survivors
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Plant, test, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--map", type=Path, help="keep the map of tests and lines in this file, or take it from there")
    parser.add_argument(
        "--notes", type=Path, help="note every outcome in this file, and go on from what is noted there"
    )
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("ECKART_DATA", None)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.map and arguments.map.exists():
            lines, seconds = json.loads(arguments.map.read_text())
        else:
            lines, seconds = reached(Path(folder), arguments.workers)
            if arguments.map:
                arguments.map.write_text(json.dumps([lines, seconds]))
    chosen = sample(arguments.count, arguments.seed, arguments.only)
    noted = _noted(arguments.notes)
    results = [(planted, noted[str(planted)]) for planted in chosen if str(planted) in noted]
    jobs = [(planted, tests_for(planted, lines, seconds)) for planted in chosen if str(planted) not in noted]
    with multiprocessing.get_context("fork").Pool(arguments.workers, _preload) as pool:
        for planted, outcome in pool.imap_unordered(_meet, jobs):
            results.append((planted, outcome))
            print(f"{len(results):>4}/{len(chosen)} {outcome:<9} {planted}", flush=True)
            if arguments.notes:
                with arguments.notes.open("a") as handle:
                    handle.write(json.dumps([str(planted), outcome]) + "\n")
    results.sort(key=lambda result: (result[0].file, result[0].bug.line))
    REPORT.write_text(report(results, arguments.seed))
    open_ones = [p for p, outcome in results if outcome != "caught" and explanation(p) is None]
    caught = sum(outcome == "caught" for _, outcome in results)
    print(f"{caught} of {len(results)} caught ({caught / len(results):.1%}); {len(open_ones)} survivors unexplained")


def _noted(notes: Path | None) -> dict[str, str]:
    """Outcomes of an interrupted run of the same sample on the same sources."""
    return dict(map(json.loads, notes.read_text().splitlines())) if notes and notes.exists() else {}


def _preload() -> None:
    """Load what takes seconds once in every worker; not the library itself."""
    import hypothesis  # noqa: F401
    import scipy.linalg  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)


def _meet(job: tuple[Planted, list[str]]) -> tuple[Planted, str]:
    planted, tests = job
    return planted, meet(planted, tests) if tests else "survives"


if __name__ == "__main__":
    main()
