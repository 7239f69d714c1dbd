"""Writing a compressed checkpoint: shard by shard, aside, and in place all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from safetensors import safe_open
from torch import Tensor

from eckart.errors import EckartError
from eckart.model import certificate
from eckart.model.certificate import BondRecord, HeadRecord, MatrixRecord, Removal
from eckart.model.checkpoint import INDEX, Checkpoint
from eckart.model.files import cannot_write, chunks, human_bytes, sync_folder, write_json, written_whole
from eckart.model.journal import JOURNAL, Journal
from eckart.model.layout import Piece, index_table, metadata
from eckart.model.quantizer import FORMAT, METHOD
from eckart.model.run import Run
from eckart.model.tensorfile import write

FOLDER = "result"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a compression comes to before it is written: tensors by file, config, and what the certificate says.

    ``target_bytes`` are those of the linear maps before and after; of the ranks ``kept`` names the choice, ``gap`` bounds what it may lack.
    ``companions`` maps the files that come along to their names in the result (``None``: all, as they are), ``tables`` are JSON files
    beside them, ``usage`` is what the model card says instead of how to load an ordinary result.
    """

    pieces: Mapping[str, list[Piece]]
    config: Mapping[str, object]
    matrices: tuple[MatrixRecord, ...]
    bonds: tuple[BondRecord, ...]
    dropped: tuple[str, ...]
    removals: tuple[Removal, ...] = ()
    target_bytes: tuple[int, int]
    losses: Mapping[str, float]
    kept: str
    gap: float | None
    companions: Mapping[str, str] | None = None
    tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    usage: tuple[str, ...] = ()
    heads: tuple[HeadRecord, ...] = ()


def write_weights(run: Run, pieces: Mapping[str, list[Piece]]) -> dict[str, str]:
    """Write the shards of the result into the work folder; the SHA-256 of every tensor."""
    folder = run.file(FOLDER)
    folder.mkdir(exist_ok=True)
    hashes: dict[str, str] = {}
    for done, (file, table) in enumerate(pieces.items()):

        def make(file: str = file, table: list[Piece] = table) -> tuple[object, list[str]]:
            by_name = {piece.spec.name: piece for piece in table}
            made = write(
                folder / file,
                [piece.spec for piece in table],
                metadata(run.checkpoint, file),
                lambda name: _tensor(run, by_name[name]),
            )
            return made, [f"{FOLDER}/{file}"]

        value = run.journal.once(f"write/{file}", make)
        assert isinstance(value, dict)
        hashes |= value
        run.progress("write", done + 1, len(pieces), file)
    index = index_table(pieces)
    if index is not None:
        write_json(folder / INDEX, index)
    return hashes


def _tensor(run: Run, piece: Piece) -> Tensor:
    if piece.source is not None:
        return run.checkpoint.read(piece.source)
    assert piece.made is not None
    file, name = piece.made
    with safe_open(run.file(file), framework="pt") as handle:
        found: Tensor = handle.get_tensor(name)
    return found


def write_rest(run: Run, made: Outcome, table: Mapping[str, object]) -> None:
    """Write config, certificate, model card and the files that came with the original."""
    folder = run.file(FOLDER)
    write_json(folder / "config.json", made.config)
    write_json(folder / certificate.NAME, table)
    copy_companions(run.checkpoint, folder, made.companions)
    for name, content in made.tables.items():
        write_json(folder / name, content)
    with written_whole(folder / "README.md") as handle:
        handle.write(_card(run, table, made).encode())


def with_modules(
    config: Mapping[str, object], modules: Mapping[str, object], links: Mapping[str, object] = MappingProxyType({})
) -> dict[str, object]:
    """A config that says which modules hold which operators, and which maps links; a stock one where there are none."""
    if not modules and not links:
        return dict(config)
    own = {"quant_method": METHOD, "format": FORMAT, "modules": modules} | ({"links": dict(links)} if links else {})
    return {**config, "quantization_config": own}


def copy_companions(checkpoint: Checkpoint, folder: Path, names: Mapping[str, str] | None = None) -> None:
    """Copy tokenizer, generation config, templates and licence of a checkpoint, or the files that ``names`` maps to new names."""
    for name, new in (names or {name: name for name in checkpoint.companions()}).items():
        target = folder / new
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as handle:
            for chunk in chunks(checkpoint.folder / name):
                handle.write(chunk)


def _card(run: Run, table: Mapping[str, object], made: Outcome) -> str:
    """The model card: the original's licence, what was done, and how to load it."""
    quantization = made.config.get("quantization_config")
    stock = quantization is None
    modules = quantization["modules"].values() if isinstance(quantization, dict) else ()
    linked = isinstance(quantization, dict) and "links" in quantization
    multiplies_out = not stock and not linked and not any("resized" in entry for entry in modules)
    sizes = table["sizes"]
    assert isinstance(sizes, dict)
    front = ["---", *_licence_lines(run.checkpoint), "library_name: transformers", "tags:", "- eckart", "---"]
    before, after = (human_bytes(sizes["files"][when]) for when in ("before", "after"))
    maps_before, maps_after = (human_bytes(sizes["targets"][when]) for when in ("before", "after"))
    title = run.recipe.paper.title
    maps = "" if made.usage else f"; of these the approximated linear maps {maps_before} before, {maps_after} now"
    loading = (
        "```python",
        *([] if stock else ["import eckart  # registers the format; without it loading fails on purpose"]),
        "from transformers import AutoModelForCausalLM",
        "",
        "model = AutoModelForCausalLM.from_pretrained(THIS_DIRECTORY)",
        "```",
        "",
    )
    body = [
        "# A checkpoint compressed by eckart",
        "",
        f"Weights {before} before, {after} now{maps}.",
        f"Method: {title}" + (f" ({run.recipe.paper.link})." if run.recipe.paper.link else "."),
        "`eckart.json` holds the parts, settings and seeds, and for every matrix or bond its size, bytes and error bounds.",
        "",
        *(made.usage or loading),
        "Check it with `eckart verify THIS_DIRECTORY --against ORIGINAL`"
        + ("; `eckart densify THIS_DIRECTORY -o DENSE` makes a stock checkpoint of it." if multiplies_out else "."),
        "",
    ]
    return "\n".join([*front, "", *body])


def _licence_lines(checkpoint: Checkpoint) -> list[str]:
    """The licence entries in the front matter of the original's model card."""
    card = checkpoint.folder / "README.md"
    if not card.is_file():
        return []
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return []
    kept: list[str] = []
    wanted = False
    for line in lines[1 : lines.index("---", 1)]:
        if line[:1] not in (" ", "-"):  # not the further lines of a list or a long value
            wanted = line.startswith(("license:", "license_name:", "license_link:", "language:"))
        if wanted:
            kept.append(line)
    return kept


def check_free(out: Path) -> None:
    """Raise ``EckartError`` if something already lies where the result shall go, or nothing can be written there."""
    if out.is_file() or out.is_symlink():
        raise EckartError(f"{out} is a file: name a directory that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise EckartError(f"{out} is not empty: choose another output directory, or empty it")


def work_folder(out: Path) -> Path:
    """Where an unfinished run for this output lies: beside it, so that the last rename stays on one file system."""
    out = out.absolute()
    return out.parent / f".{out.name}.eckart-work"


def may_be_done(out: Path, mark: str) -> bool:
    """Whether ``out``, by its file ``mark``, may be the result of a run that was killed before it could clean up."""
    return (out / mark).is_file() and (work_folder(out) / JOURNAL).is_file()


def is_in_place(journal: Journal, out: Path, mark: str) -> bool:
    """Whether the run of this journal was killed after its result was put in place; what is left of it is then removed.

    Raises ``EckartError`` if the result was taken away since.
    """
    if not journal.is_done("sealed") or journal.path(FOLDER).exists():
        return False
    if not (out / mark).is_file():
        raise EckartError(f"{out} was finished and is no longer there: put it back, or begin anew with --restart")
    journal.remove()
    return True


def put_in_place(journal: Journal, out: Path) -> None:
    """Give the finished folder of a run its name in one step, and remove the run's work files."""
    journal.once("sealed", lambda: (None, []))
    move_into_place(journal.path(FOLDER), out)
    journal.remove()


def move_into_place(source: Path, out: Path) -> None:
    """Put a finished folder under its name in one step."""
    try:
        for folder in [source, *(p for p in source.rglob("*") if p.is_dir())]:
            sync_folder(folder)
        source.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise cannot_write(out, error, "free space or choose another output") from error
