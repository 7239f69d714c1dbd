"""Checkpoints of any size to measure with: a Llama of random weights whose spectra fall like a power.

python benchmarks/synthetic.py DIR --gigabytes 6
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from eckart.bundled import MODEL
from eckart.model.files import human_bytes
from eckart.model.tensorfile import TensorSpec, write

CORE = 256  # how many directions stand above the noise


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, named as in its config."""

    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    num_hidden_layers: int = 1
    vocab_size: int = 1536

    def specs(self, block: int | None) -> list[TensorSpec]:
        """The tensors of a block, or those outside of all, in bfloat16."""
        wide, inner = self.hidden_size, self.intermediate_size
        narrow = wide // self.num_attention_heads * self.num_key_value_heads
        if block is None:
            shapes = {"model.embed_tokens": (self.vocab_size, wide), "lm_head": (self.vocab_size, wide)}
            shapes |= {"model.norm": (wide,)}  # type: ignore[dict-item]
        else:
            maps = {"q": (wide, wide), "k": (narrow, wide), "v": (narrow, wide), "o": (wide, wide)}
            shapes = {f"self_attn.{name}_proj": shape for name, shape in maps.items()}
            shapes |= {"mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide), "mlp.down_proj": (wide, inner)}
            shapes |= {"input_layernorm": (wide,), "post_attention_layernorm": (wide,)}  # type: ignore[dict-item]
            shapes = {f"model.layers.{block}.{name}": shape for name, shape in shapes.items()}
        return [TensorSpec(f"{name}.weight", torch.bfloat16, shape) for name, shape in shapes.items()]

    def config(self) -> dict[str, object]:
        """The ``config.json``."""
        return (
            json.loads((MODEL / "config.json").read_text())
            | asdict(self)
            | {
                "head_dim": self.hidden_size // self.num_attention_heads,
                "tie_word_embeddings": False,
                "max_position_embeddings": 2048,
            }
        )


SEVEN_B = Shape(4096, 11008, 32, 32, 32, 32000)


def weight(spec: TensorSpec, seed: int) -> Tensor:
    """Ones for a norm; else a matrix of scale 0.02 whose singular values fall like k^-1/2 above a floor of noise."""
    if len(spec.shape) == 1:
        return torch.ones(spec.shape, dtype=spec.dtype)
    rng = Generator().manual_seed(seed)
    rows, columns = spec.shape
    core = min(CORE, rows, columns)
    falling = torch.arange(1, core + 1).pow(-0.5)
    product = (torch.randn(rows, core, generator=rng) * falling) @ torch.randn(core, columns, generator=rng)
    noise = torch.randn(rows, columns, generator=rng)
    return (0.01 * (product + noise)).to(spec.dtype)


def make(folder: Path, shape: Shape, shard_bytes: int = 10**9) -> Path:
    """Write a checkpoint in shards of about ``shard_bytes``, one tensor in memory at a time."""
    folder.mkdir(parents=True)
    shards: list[list[TensorSpec]] = [[]]
    for block in [None, *range(shape.num_hidden_layers)]:
        specs = shape.specs(block)
        if shards[-1] and sum(s.nbytes for s in [*shards[-1], *specs]) > shard_bytes:
            shards.append([])
        shards[-1] += specs
    places: dict[str, str] = {}
    seeds = {spec.name: index for index, spec in enumerate(s for shard in shards for s in shard)}
    for index, specs in enumerate(shards):
        name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        by_name = {spec.name: spec for spec in specs}
        write(folder / name, specs, {"format": "pt"}, lambda n, by_name=by_name: weight(by_name[n], seeds[n]))
        places |= dict.fromkeys(by_name, name)
    total = sum(spec.nbytes for shard in shards for spec in shard)
    index_table = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_table))
    (folder / "config.json").write_text(json.dumps(shape.config()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    return folder


def of_size(gigabytes: float) -> Shape:
    """A shape of about this many gigabytes."""
    block = sum(spec.nbytes for spec in Shape().specs(0))
    return Shape(num_hidden_layers=max(1, round(gigabytes * 1e9 / block)))


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--seven-b", action="store_true", help="the shapes of a model of 7 billion parameters, 13 GB")
    arguments = parser.parse_args()
    made = make(arguments.folder, SEVEN_B if arguments.seven_b else of_size(arguments.gigabytes))
    print(made, human_bytes(sum(path.stat().st_size for path in made.glob("*.safetensors"))))


if __name__ == "__main__":
    main()
