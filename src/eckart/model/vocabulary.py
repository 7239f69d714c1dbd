"""A smaller vocabulary, from the ids of a text to the checkpoint that has rows for these alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from eckart.bonds import BondGraph
from eckart.bonds.words import Words
from eckart.errors import EckartError
from eckart.model.certificate import BondRecord
from eckart.model.checkpoint import Checkpoint
from eckart.model.files import read_json, sha256_of
from eckart.model.graph import graph_of
from eckart.model.layout import Piece
from eckart.model.output import Outcome
from eckart.model.run import Request, Run
from eckart.model.skeleton import Skeleton
from eckart.model.tensorfile import TensorSpec, tensor_bytes, write_all
from eckart.model.text import encode, load_tokenizer, read_text
from eckart.model.words import NAME, TOKENIZER, Vocabulary, to_json

BOND = "vocabulary"
GENERATION = "generation_config.json"
# What stays beside the weights: all else may be a part of the tokenizer, which must not lie there.
OUTSIDE = (GENERATION, "*.py", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")  # lists of ids; one that is gone needs no suppressing
SEQUENCES = (
    "bad_words_ids",
    "force_words_ids",
    "forced_decoder_ids",
    "sequence_bias",
)  # ids that mean something together
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def counted(skeleton: Skeleton, request: Request) -> tuple[Tensor, dict[str, object]]:
    """How often each id occurs in the whole calibration text (V,), int64, and what the record says of the text.

    Raises ``EckartError`` for options that have no meaning here, and for a model whose vocabulary was made smaller before.
    """
    if request.only or request.exclude:
        raise EckartError("--only and --exclude name matrices, and this recipe leaves out tokens: leave them away")
    if request.window is not None or request.tokens != Request.tokens:
        raise EckartError("this recipe counts the whole calibration text: leave --tokens and --window away")
    if request.calibration is None:
        raise EckartError(
            "what is left of the vocabulary is what a text uses: name one like those that the model is for, with --calibration FILE"
        )
    folder = skeleton.checkpoint.folder
    if (folder / NAME).exists():
        raise EckartError(f"{folder} has a smaller vocabulary already: start from the original")
    ids = encode(load_tokenizer(folder), read_text(request.calibration))
    size = _size(skeleton)
    counts = torch.bincount(ids, minlength=size)
    if len(counts) > size:
        raise EckartError(
            f"the tokenizer in {folder} belongs to another model: it gives the id {len(counts) - 1}, "
            f"but the embedding has {size} rows"
        )
    return counts, {
        "sha256": sha256_of(request.calibration),
        "ids": hashlib.sha256(tensor_bytes(ids)).hexdigest(),
        "tokens": len(ids),
        "asked_tokens": len(ids),
        "window": max(2, len(ids)),
        "seed": request.seed,
    }


def with_fewer_words(run: Run, words: Words) -> Outcome:
    """The model with rows for the ids that ``words`` chooses and for the special ones, in the order of the original.

    Rows are selected one tensor at a time. Raises ``EckartError`` for an architecture whose vocabulary is not declared, and for a
    generation config with lists of tokens that would have to mean something else.
    """
    graph = graph_of(run.checkpoint)
    axes = rows_of(run.checkpoint, graph)
    assert run.counts is not None
    kept = _kept(run, words, run.counts)
    found = Vocabulary(len(run.counts), tuple(kept.tolist()))
    made: dict[str, tuple[str, TensorSpec]] = {}
    for index, (name, axis) in enumerate(axes.items()):
        file = f"vocabulary-{index:04d}.safetensors"

        def make(name: str = name, axis: int = axis, file: str = file) -> tuple[object, list[str]]:
            write_all(run.file(file), {name: run.checkpoint.read(name).index_select(axis, kept)})
            return None, [file]

        run.journal.once(f"vocabulary/{name}", make)
        _, spec = run.checkpoint.tensors[name]
        shape = tuple(len(kept) if i == axis else side for i, side in enumerate(spec.shape))
        made[name] = file, TensorSpec(name, spec.dtype, shape)
        run.progress("narrow", index + 1, len(axes), name)
    run.untouched.clear()  # these are matrices that a recipe of matrices would leave alone
    linear = sum(target.bytes for target in run.targets)
    return Outcome(
        pieces=_pieces(run.checkpoint, made),
        config=_translated(_with_defaults(run.skeleton), found, "config.json") | {graph.sizes[BOND]: len(kept)},
        matrices=(),
        bonds=(BondRecord(BOND, found.size, len(kept), found.kept, None),),
        dropped=(),
        target_bytes=(linear, linear),
        losses={},
        kept=type(words).__name__.lower(),
        gap=None,
        companions=_companions(run.checkpoint),
        tables={NAME: to_json(found)} | _generation(run.checkpoint, found),
        usage=_usage(found),
    )


def rows_of(checkpoint: Checkpoint, graph: BondGraph) -> dict[str, int]:
    """The tensors that have a row for every id, with the axis of these.

    Raises ``EckartError`` for an architecture that is not declared with a vocabulary.
    """
    if BOND not in graph.bonds or BOND not in graph.sizes:
        raise EckartError(
            f"{checkpoint.folder}: the architecture {graph.architecture} is not declared with a vocabulary, so what has a row for every "
            "token is not known"
        )
    return {end.tensor: end.axis for end in graph.bond(BOND).ends}


def _size(skeleton: Skeleton) -> int:
    return int(skeleton.model.get_input_embeddings().weight.shape[0])


def _kept(run: Run, words: Words, counts: Tensor) -> Tensor:
    """The ids that stay (k,), rising."""
    found = set(words(counts).tolist()) | {token for token in _special(run) if 0 <= token < len(counts)}
    if not found:
        raise EckartError("no token occurs as often as this recipe asks for: ask for less, or give a longer text")
    return torch.tensor(sorted(found), dtype=torch.int64)


def _special(run: Run) -> set[int]:
    """Ids that configs name, special tokens, and the bytes by which a tokenizer writes what it has no other tokens for."""
    tokenizer = load_tokenizer(run.checkpoint.folder)
    found = set(tokenizer.all_special_ids)
    found |= {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    for table in (_with_defaults(run.skeleton), _generation_of(run.checkpoint) or {}):
        for key, value in table.items():
            if key.endswith("_token_id"):
                found |= {token for token in _listed(value) if type(token) is int}
    single = _by_bytes(tokenizer)
    return found | {
        token for name, token in tokenizer.get_vocab().items() if BYTE.fullmatch(name) or (single and len(name) == 1)
    }


def _by_bytes(tokenizer: Any) -> bool:
    """Whether its tokens are made of bytes, each of which is a character of its own there."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    table = json.loads(backend.to_str())
    return '"ByteLevel"' in json.dumps([table.get("pre_tokenizer"), table.get("decoder")])


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _with_defaults(skeleton: Skeleton) -> dict[str, object]:
    """The config with ids that it leaves to the architecture: these would be those of other tokens."""
    whole = skeleton.model.config.to_dict()
    named = {key: value for key, value in whole.items() if key.endswith("_token_id")}
    return named | dict(skeleton.checkpoint.config)


def _generation_of(checkpoint: Checkpoint) -> dict[str, object] | None:
    path = checkpoint.folder / GENERATION
    return read_json(path) if path.is_file() else None


def _generation(checkpoint: Checkpoint, found: Vocabulary) -> dict[str, Mapping[str, object]]:
    table = _generation_of(checkpoint)
    return {} if table is None else {GENERATION: _translated(table, found, GENERATION)}


def _translated(table: Mapping[str, object], found: Vocabulary, origin: str) -> dict[str, object]:
    """A config in the ids of the smaller vocabulary. Numbers that are nobody's id, such as -1, stay."""
    new = {old: place for place, old in enumerate(found.kept)}
    made = dict(table)
    for key, value in table.items():
        if key in SEQUENCES and value:
            raise EckartError(
                f"{origin} has {key}, which would have to be told in other ids: take it out, and put it in again in those of {NAME}"
            )
        if key in SUPPRESSED and isinstance(value, list):
            made[key] = [new[token] for token in value if token in new]
        elif key.endswith("_token_id"):
            ids = [new.get(token, token) if type(token) is int else token for token in _listed(value)]
            made[key] = ids if isinstance(value, list) else ids[0]
    return made


def _pieces(checkpoint: Checkpoint, made: Mapping[str, tuple[str, TensorSpec]]) -> dict[str, list[Piece]]:
    """The files of the original with other rows."""
    return {
        file: [
            Piece(made[spec.name][1], made=(made[spec.name][0], spec.name))
            if spec.name in made
            else Piece(spec, source=spec.name)
            for spec in checkpoint.specs(file)
        ]
        for file in checkpoint.files
    }


def _companions(checkpoint: Checkpoint) -> dict[str, str]:
    """Where the files beside the weights go. The config comes along: transformers tells by it what kind of tokenizer it is."""
    names: Iterable[str] = (name for name in checkpoint.companions() if name != GENERATION)
    moved = {
        name: name if any(fnmatchcase(name, pattern) for pattern in OUTSIDE) else f"{TOKENIZER}/{name}"
        for name in names
    }
    return moved | {"config.json": f"{TOKENIZER}/config.json"}


def _usage(found: Vocabulary) -> tuple[str, ...]:
    """The lines of the model card that say how to translate."""
    return (
        f"The vocabulary has {len(found.kept)} of {found.size} tokens. The tokenizer in the folder `{TOKENIZER}` gives the original's ids,",
        "which mean other tokens here: translate them.",
        "",
        "```python",
        "import eckart",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "model = AutoModelForCausalLM.from_pretrained(THIS_DIRECTORY)",
        f'tokenizer = AutoTokenizer.from_pretrained(THIS_DIRECTORY + "/{TOKENIZER}")',
        "words = eckart.vocabulary(THIS_DIRECTORY)",
        'ids = words.shrink(tokenizer("some text", return_tensors="pt").input_ids)',
        "text = tokenizer.decode(words.restore(model.generate(ids))[0])",
        "```",
        "",
        f"Without eckart: `kept` in `{NAME}` lists the original's id for every id of this model.",
        "After training, `eckart restore THIS_DIRECTORY --original ORIGINAL -o FULL` puts the rows back into the original.",
        "",
    )
