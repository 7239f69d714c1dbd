"""A Hugging Face model directory, read tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.files import LONGEST_NAME, read_json, sha256_of, shown
from eckart.model.tensorfile import TensorFile, TensorSpec
from eckart.model.workers import side_by_side

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
# Entries of a config by which memory or time grows before the stored weights are compared with it.
WIDTHS = ("vocab_size", "hidden_size", "n_embd", "head_dim", "intermediate_size")
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
# Numbers that are looked at together for NaN and infinity.
SCANNED = 1 << 24
# What a model directory may hold beside weights that a reader of the result needs as well.
COMPANIONS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "*.py",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "additional_chat_templates/*",
    "tokenizer/*",  # where it is the original's, beside a smaller vocabulary
)


class Checkpoint:
    """The config and the tensors of a model directory; tensors are read when they are asked for.

    ``tensors`` maps each name to its file and spec. Raises ``EckartError`` for anything that is missing, damaged,
    pickled or contradictory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise EckartError(
                f"{folder} is not a directory: name a Hugging Face model directory or a hub id such as org/name"
            )
        self.config = read_json(folder / "config.json")
        self._places: dict[str, str] = {}  # what the index says: the file of each tensor
        self.files = self._weight_files()
        self._open = {name: TensorFile(folder / name) for name in self.files}
        self.tensors: dict[str, tuple[str, TensorSpec]] = {}
        for file, opened in self._open.items():
            for name, spec in opened.specs.items():
                if name in self.tensors:
                    raise EckartError(
                        f"{folder}: tensor {name} stands in both {self.tensors[name][0]} and {file}; keep one"
                    )
                self.tensors[name] = (file, spec)
        self._check_index()
        self._check_config()
        if (folder / ADAPTER).exists():
            raise EckartError(
                f"{folder / ADAPTER} makes transformers load another model than the one beside it: merge the adapter into "
                "its model first, or move its files away"
            )

    def _weight_files(self) -> list[str]:
        if (self.folder / INDEX).exists():
            shards = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
                raise EckartError(f"{self.folder / INDEX} holds no weight_map of names to files: restore it")
            names = sorted(set(shards.values()))
            for name in names:
                self._check_shard(name)
            self._places = shards
            return names
        if (self.folder / SINGLE).exists():
            return [SINGLE]
        others = sorted(p.name for p in self.folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        if others:
            raise EckartError(
                f"{self.folder} holds only pickled weights ({others[0]}), which can run code when read: convert them first, "
                "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW) on a machine where you trust the file"
            )
        raise EckartError(f"{self.folder} holds no {SINGLE} and no {INDEX}: is it a Hugging Face model directory?")

    def _check_shard(self, name: str) -> None:
        """The name of a weight file in the index: it becomes the name of one in the result as well."""
        index = self.folder / INDEX
        if os.path.basename(name) != name or name in {"", ".", ".."}:
            raise EckartError(f"{index} points outside its directory ({shown(name)}): refused")
        if not name.isprintable() or len(os.fsencode(name)) > LONGEST_NAME - len("..part"):
            raise EckartError(
                f"{index} names a file with control characters, or a very long one ({shown(name)}): refused"
            )
        if not (self.folder / name).exists():
            raise EckartError(f"{self.folder / name} is missing: the index names it; download the model again")
        if not name.endswith(".safetensors"):  # it would be written over another file of the result, or as one
            raise EckartError(f"{index} names {shown(name)}, which is no safetensors file by its name: refused")

    def _check_config(self) -> None:
        """Refuse a config that asks for code, or for sizes that no stored tensor has, before a model is built of it."""
        inner = self.config.get("text_config")
        shapes = [spec.shape for _, spec in self.tensors.values()]
        longest = max((size for shape in shapes for size in shape), default=0)
        for table in (self.config, inner if isinstance(inner, dict) else {}):
            for key, value in table.items():  # such as attn_implementation: transformers would fetch and run a kernel
                if key.endswith("_implementation") and "/" in str(value):
                    raise EckartError(
                        f"{self.folder / 'config.json'} asks for code from elsewhere ({key}), which is not run: "
                        "delete that entry"
                    )
            for keys, most, what in ((WIDTHS, longest, "side"), (DEPTHS, len(shapes), "number of tensors")):
                for key in keys:
                    value = table.get(key)
                    if isinstance(value, int | float) and value > most:
                        raise EckartError(
                            f"{self.folder / 'config.json'} says that {key} is {shown(value)}, but the largest {what} "
                            f"stored is {most}: restore the config, or fetch the model again"
                        )

    def _check_index(self) -> None:
        for name, file in self._places.items():
            if name not in self.tensors or self.tensors[name][0] != file:
                raise EckartError(
                    f"{self.folder / INDEX} says that {name} is in {file}, but it is not: restore the index"
                )

    def read(self, name: str) -> Tensor:
        """The tensor of this name, as stored."""
        file, _ = self.tensors[name]
        return self._open[file].read(name)

    def read_finite(self, name: str) -> Tensor:
        """As ``read``; raises ``EckartError`` if there is NaN or infinity in it."""
        tensor = self.read(name)
        self._check_finite(name, tensor)
        return tensor

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point() and not all(_is_finite(piece) for piece in _pieces(tensor)):
            file, _ = self.tensors[name]
            raise EckartError(
                f"{self.folder / file}: tensor {name} holds NaN or infinity; no error of it could be stated"
            )

    def metadata(self, file: str) -> dict[str, str]:
        """The metadata of one of the weight files."""
        return self._open[file].metadata

    def specs(self, file: str) -> list[TensorSpec]:
        """The tensors of one of the weight files."""
        return list(self._open[file].specs.values())

    def weight_bytes(self) -> int:
        """The bytes of all safetensors files together."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    def file_hashes(self, finite: Collection[str] = ()) -> dict[str, str]:
        """SHA-256 of the config and of each weight file, from one pass over the files.

        Raises ``EckartError`` if there is NaN or infinity in one of the tensors that are to be ``finite``.
        """

        def look(name: str, tensor: Tensor) -> None:
            if name in finite:
                self._check_finite(name, tensor)

        config = {"config.json": sha256_of(self.folder / "config.json")}
        hashes = side_by_side(lambda name: self._open[name].sha256(look), self.files)
        return config | dict(zip(self.files, hashes, strict=True))

    def companions(self) -> list[str]:
        """Files beside the weights that belong to the model: tokenizer, generation config, templates, licence."""
        own = {"config.json", INDEX, "eckart.json", *self.files}
        found = {p.relative_to(self.folder).as_posix() for pattern in COMPANIONS for p in self.folder.glob(pattern)}
        return sorted(n for n in found - own if (self.folder / n).is_file() and not n.endswith(".index.json"))


def _is_finite(numbers: Tensor) -> bool:
    """Whether there is neither NaN nor infinity among them. A finite sum says so, several times faster than a look at each."""
    total = numbers.sum(dtype=torch.float64 if numbers.dtype.itemsize > 2 else torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(numbers).all())


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in pieces that a scan can afford to copy; 8-bit floats, which torch cannot scan, widened."""
    for piece in tensor.reshape(-1).split(SCANNED):
        yield piece.half() if piece.dtype.itemsize == 1 else piece


def resolve(model: str | Path) -> Path:
    """The local directory of a model named by path or hub id; a hub id is downloaded unless it is cached.

    ``HF_HUB_OFFLINE=1`` keeps it from touching the network. Raises ``EckartError`` if there is no such model.
    """
    path = Path(model)
    if path.exists():
        return path
    name = str(model)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise EckartError(f"{name} does not exist: name a Hugging Face model directory or a hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", *COMPANIONS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EckartError(f"{name} is no local directory, and the hub did not give it: {reason}") from error
