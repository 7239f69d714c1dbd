"""The bond graph of a model directory."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from eckart.bonds import BondGraph, assembled, declared, inner_bonds
from eckart.errors import EckartError, first_line
from eckart.model.checkpoint import Checkpoint, resolve


def bond_graph(model: str | Path) -> BondGraph:
    """The bonds of a model: which axes of which tensors meet, and what may be changed there without changing the network.

    ``model`` is a local Hugging Face directory or a hub id. Config and tensor names decide; no weight is read. Of an
    architecture that is not declared only the inner bond of each matrix is known.

    Raises ``EckartError`` for a damaged checkpoint, and where the tensors are not those that the architecture is declared with.
    """
    checkpoint = Checkpoint(resolve(model))
    if "quantization_config" in checkpoint.config:
        raise EckartError(f"{checkpoint.folder} is compressed: ask for the bonds of the original, or densify it first")
    return graph_of(checkpoint)


def graph_of(checkpoint: Checkpoint, *, untied: bool = False) -> BondGraph:
    """The bonds of a checkpoint; ``untied`` as if a head that is tied to the embedding had a weight of its own."""
    shapes = {name: spec.shape for name, (_, spec) in checkpoint.tensors.items()}
    model_type = str(checkpoint.config.get("model_type"))
    declaration = declared(model_type)
    if declaration is None:
        return inner_bonds(model_type, shapes)
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False).to_dict()
    except Exception as error:  # whatever a wrong entry leads to in transformers
        raise EckartError(
            f"{checkpoint.folder / 'config.json'} is no config of a {model_type} model: {first_line(error)}"
        ) from error
    if untied:
        own = {f"{n}.weight": f"{e.tied_to}.weight" for n, e in declaration.outside.items() if e.tied_to is not None}
        shapes |= {copy: shapes[source] for copy, source in own.items() if copy not in shapes and source in shapes}
        config["tie_word_embeddings"] = False
    try:
        return assembled(declaration, config, shapes)
    except EckartError as error:
        raise EckartError(f"{checkpoint.folder}: {error}") from error


def kinds_of(graph: BondGraph) -> dict[str, str]:
    """For each weight inside of a block the kind of the bond that it meets there, "keys" also for queries; none where it meets several.

    >>> from eckart.bonds import Bond, End, Invertible
    >>> bond = Bond("h.0.values.1", 2, Invertible(), (End("v", 0, 2, 4, reads=False), End("o", 1, 2, 4, reads=True)))
    >>> kinds_of(BondGraph("example", {bond.name: bond}, {}, {}, blocks=("h.0",)))
    {'v': 'values', 'o': 'values'}
    """
    found: dict[str, set[str]] = {}
    for bond in graph.bonds.values():
        block = next((name for name in graph.blocks if bond.name.startswith(f"{name}.")), None)
        kind, _, group = bond.name.removeprefix(f"{block}.").partition(".")
        if block is not None and (not group or group.isdecimal()):
            for end in bond.ends:
                found.setdefault(end.tensor, set()).add(kind)
    return {tensor: kinds.pop() for tensor, kinds in found.items() if len(kinds) == 1}
