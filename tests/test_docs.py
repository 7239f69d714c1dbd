"""What the README shows is run: its shell block, its Python blocks, and the options that it names exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest
from combinations import PAGE, page
from runs import cli

from eckart.bundled import MODEL

README = Path(__file__).parent.parent / "README.md"
DESIGN = Path(__file__).parent.parent / "docs" / "design.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not part of the wheel")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def environment() -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_readme_commands_run_and_leave_what_they_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line; those of eckart in this process, which has the libraries, with what the shell makes of its variables."""
    lines = [line for line in "".join(blocks("sh")).splitlines() if line.strip()]
    setting = [line for line in lines if not line.startswith("eckart ")]
    names = re.findall(r"^(\w+)=", "\n".join(setting), re.MULTILINE)
    told = run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*setting, *(f'echo "${name}"' for name in names)])], tmp_path
    )
    values = dict(zip(names, told.splitlines(), strict=True))
    monkeypatch.chdir(tmp_path)
    shown = []
    for line in lines:
        if line.startswith("eckart "):
            words = shlex.split(Template(line).substitute(values), comments=True)
            done = cli(*words[1:])
            assert done.code == 0, f"{line}: {done.err}"
            shown.append(done.out)
    assert len(shown) > 15
    output = "\n".join(shown)
    assert "everything that was checked holds" in output
    assert (tmp_path / "small" / "eckart.json").stat().st_size > 1000
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size == (MODEL / "model.safetensors").stat().st_size
    assert "quantization_config" not in (tmp_path / "dense" / "config.json").read_text()
    assert '"healing"' in (tmp_path / "healed" / "eckart.json").read_text()
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", range(4))
def test_readme_python_runs_in_a_fresh_process(tmp_path: Path, number: int) -> None:
    examples = blocks("python")
    assert len(examples) == 4
    example = examples[number]
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    assert run([sys.executable, "example.py"], tmp_path).strip()


def test_every_option_that_the_readme_names_exists() -> None:
    from typer.main import get_command

    from eckart.cli.main import app

    found = list(get_command(app).commands.values())  # type: ignore[attr-defined]
    found += [inner for command in found for inner in getattr(command, "commands", {}).values()]
    known = {name for command in found for parameter in command.params for name in parameter.opts} | {
        "--help",
        "--version",
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README.read_text(encoding="utf-8")))
    assert named <= known, f"not options: {sorted(named - known)}"


def test_the_page_of_what_goes_with_what_is_current() -> None:
    """Written anew by ``python tests/combinations.py``."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_design_page_names_files_that_exist() -> None:
    root = DESIGN.parent.parent
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py|[a-z]+/)`", DESIGN.read_text(encoding="utf-8")))
    assert len(named) > 8
    for name in named:
        places = (root / name, root / "src" / "eckart" / name)
        assert any(place.exists() for place in places), f"docs/design.md names {name}, which is not there"
