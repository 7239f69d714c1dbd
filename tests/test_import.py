"""What importing the library brings along, in processes of their own."""

import subprocess
import sys

import pytest

import eckart

KNOWN = (
    "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as table; "
    "assert table['eckart'].__module__ == 'eckart.model.quantizer'"
)


def said(script: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_numerical_core_needs_torch_alone() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import eckart.linalg; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    assert said(script) == "['eckart']"


def test_help_and_wrong_options_are_answered_without_torch() -> None:
    script = """
import sys
from eckart.cli import main
for arguments in (["--help"], ["compress", "--help"], ["--version"], ["compress", "--rank", "3"]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print(end.code, {"torch", "transformers"} & set(sys.modules))
"""
    told = [line for line in said(script).splitlines() if line.endswith("set()")]
    assert told == ["0 set()", "0 set()", "0 set()", "2 set()"]


@pytest.mark.parametrize(
    "script",
    [
        f"import eckart; {KNOWN}",
        f"import transformers.quantizers; import eckart; {KNOWN}",
        f"import transformers; import eckart.linalg; from transformers import AutoModelForCausalLM; {KNOWN}",
        f"import eckart; import eckart; from eckart import compress; {KNOWN}",
    ],
    ids=["eckart first", "transformers first", "the core only", "the engine first"],
)
def test_the_format_is_registered_in_any_order(script: str) -> None:
    assert said(script) == ""


def test_public_names_are_there_when_they_are_asked_for() -> None:
    for name in eckart.__all__:
        assert getattr(eckart, name) is not None
        assert name in dir(eckart)
    with pytest.raises(AttributeError, match="module 'eckart' has no attribute 'decompose'"):
        _ = eckart.decompose  # type: ignore[attr-defined]
