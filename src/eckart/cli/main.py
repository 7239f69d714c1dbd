"""The entry point: commands, exit codes, and errors as one sentence."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

import typer

from eckart._version import __version__
from eckart.cli import adapting, commands, healing, lora
from eckart.cli.show import fail
from eckart.errors import EckartError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
LARGE = 4 << 20  # bytes from which on a piece of memory is asked of the system and given back to it
SPARE = 16 << 20  # bytes that may lie free at the end of the heap: activations of small models come and go there
# Read by torch and transformers when the commands import them.
FOR_LIBRARIES = {
    "THP_MEM_ALLOC_ENABLE": "1",  # large pages: the first touch of new memory, and every tensor is new, costs half
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # of several processes each would warn of a search that is wanted
    "TRANSFORMERS_VERBOSITY": "error",  # what it warns of is refused in a sentence here, or is no concern of the user's
}

app = typer.Typer(
    name="eckart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Low-rank, with proof: look at a model's matrices, compress them, and know how far each approximation is "
    "from the best possible one.",
    epilog="Exit codes: 0 done; 1 a check failed (verify); 2 wrong input or option; 130 and 143 stopped by a signal.",
)
app.command("compress")(commands.compress)
app.command("heal")(healing.heal)
app.command("adapt")(adapting.adapt)
app.command("verify")(commands.verify)
app.command("densify")(commands.densify)
app.command("restore")(commands.restore)
app.command("eval")(commands.evaluate)
app.command("inspect")(commands.inspect)
app.command("bonds")(commands.bonds)
app.command("recipes")(commands.recipes)
app.command("demo")(commands.demo)
bench = typer.Typer(no_args_is_help=True, help="Time what this machine does.")
bench.command("layers")(commands.bench_layers)
app.add_typer(bench, name="bench")
app.command("merge-adapter")(lora.merge)
adapters = typer.Typer(
    no_args_is_help=True, help="Resize, extract, inspect, add and lift LoRA adapters, by their factors."
)
adapters.command("resize")(lora.resize)
adapters.command("extract")(lora.extract)
adapters.command("inspect")(lora.inspect)
adapters.command("add")(lora.add)
adapters.command("lift")(lora.lift)
app.add_typer(adapters, name="lora")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eckart {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


# typer brings its own copy of click in newer versions, so the class of all wrong uses is found by inheritance.
_WrongUse: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Stopped(BaseException):
    """SIGTERM or Ctrl-C, raised where the program is, so that files written aside are removed on the way out."""


def _give_memory_back() -> None:
    """Have glibc return what large tensors took as soon as they are gone.

    Left to itself it learns from the first of them to keep such pieces, and holes between them grow to half a gigabyte.
    """
    with suppress(OSError, AttributeError):  # other C libraries know nothing of it
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, SPARE)


def _run(received: list[int]) -> object:
    """The command; whatever it ends with after a signal, it was stopped: C code that calls back makes other errors of ours."""
    try:
        # Not standalone: click would answer Ctrl-C with exit code 1 and a wrong option with half a screen.
        return app(standalone_mode=False)
    except BaseException as error:
        if received and not isinstance(error, _Stopped):
            raise _Stopped(128 + received[0]) from error
        raise


def main() -> None:
    """Run the command line and exit with its code."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise _Stopped(128 + number)

    _give_memory_back()
    for name, value in FOR_LIBRARIES.items():
        os.environ.setdefault(name, value)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = _run(received)
    except EckartError as error:
        fail(str(error), error.exit_code)
    except _WrongUse as error:
        message = str(error.format_message())  # type: ignore[attr-defined]
        if not message:  # no command at all: the help was printed
            raise SystemExit(2) from None
        fail(f"{message.rstrip('.')}; see eckart COMMAND --help", 2)
    except _Stopped as stopped:
        fail("stopped; the same command goes on from here", stopped.args[0])
    except MemoryError:
        fail("out of memory: close other programs, or use a smaller --window", 2)
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # how torch tells of the same
            raise
        fail("out of memory: close other programs, or use a smaller --window", 2)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    except OSError as error:  # the system's refusals that no part of the library foresaw
        fail(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}", 2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise SystemExit(code if isinstance(code, int) else 0)
