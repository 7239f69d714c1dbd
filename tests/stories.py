"""The trained stories260K model of llama2.c as a Hugging Face checkpoint, and the stories it is scored on.

The input is the `llama2c_stories260k` folder below the data folder: one binary with the weights, one with the
tokenizer. `SOURCE.md` there gives both layouts. The texts come from `tinystories_sample` next to it.
"""

import re
import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

UNKNOWN, BOS, EOS = 0, 1, 2
BYTES = 3  # the id of <0x00>; the other 255 bytes follow
NAMES = ("<unk>", "<s>", "</s>")
_MODEL = Path("llama2c_stories260k", "stories260K.bin")
_PIECES = Path("llama2c_stories260k", "tok512.bin")
_TEXT = Path("tinystories_sample", "tinystories_val.txt")


@dataclass(frozen=True)
class Pieces:
    """The vocabulary of llama2.c: pieces by id, with the merge scores of the learned ones."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> "Pieces":
        """Read the tokenizer file; it has no count, so it is read to its end."""
        data = path.read_bytes()
        texts, scores, offset = [], [], 4  # the leading integer is the longest piece's length
        while offset < len(data):
            score, length = struct.unpack_from("<fi", data, offset)
            offset += 8 + length
            texts.append(data[offset - length : offset].decode())
            scores.append(score)
        return cls(tuple(texts), tuple(scores))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Return the ids of the learned pieces; neither control nor byte tokens are ever found by their text."""
        return {text: number for number, text in enumerate(self.texts) if number >= BYTES + 256}

    def encode(self, text: str) -> list[int]:
        """Encode the way run.c does: characters first, then the best-scoring adjacent pair until none is left."""
        ids: list[int] = []
        for character in f" {text}" if text else "":
            known = self.ids.get(character)
            ids += [byte + BYTES for byte in character.encode()] if known is None else [known]

        def merged(left: int) -> tuple[float, int]:
            number = self.ids.get(self.texts[ids[left]] + self.texts[ids[left + 1]])
            return (-np.inf, -1) if number is None else (self.scores[number], number)

        pairs = [merged(left) for left in range(len(ids) - 1)]
        scores = [score for score, _ in pairs]
        while scores and (best := max(scores)) > -np.inf:
            left = scores.index(best)
            ids[left : left + 2] = [pairs[left][1]]
            del pairs[left], scores[left]
            for changed in (left - 1, left):
                if 0 <= changed < len(pairs):
                    pairs[changed] = merged(changed)
                    scores[changed] = pairs[changed][0]
        return [BOS, *ids]

    def fast(self, max_length: int) -> PreTrainedTokenizerFast:
        """Return the same encoder as a fast tokenizer, which puts BOS first unless told otherwise."""
        vocabulary = {text: number for number, text in enumerate(NAMES + self.texts[len(NAMES) :])}
        ranked = sorted(self.ids, key=lambda text: -self.scores[self.ids[text]])
        merges = [
            (text[:cut], text[cut:])
            for text in ranked
            for cut in range(1, len(text))
            if text[:cut] in self.ids and text[cut:] in self.ids
        ]
        tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=NAMES[UNKNOWN], byte_fallback=True))
        tokenizer.normalizer = normalizers.Prepend(" ")
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
        )
        bos = NAMES[BOS]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, BOS)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token=NAMES[UNKNOWN],
            bos_token=bos,
            eos_token=NAMES[EOS],
            model_max_length=max_length,
            clean_up_tokenization_spaces=False,
            split_special_tokens=True,  # run.c reads "<s>" in a text as three characters
        )


def _half_split(rows: Tensor, heads: int) -> Tensor:
    """Reorder a projection's rows from rotary pairs side by side to the halves that transformers rotates."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _read_model(path: Path) -> LlamaForCausalLM:
    data = path.read_bytes()
    width, inner, depth, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", data)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=abs(vocabulary),
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=vocabulary > 0,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    numbers = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).astype(np.float32))
    used = 0

    def take(*shape: int) -> Tensor:
        nonlocal used
        used += prod(shape)
        return numbers[used - prod(shape) : used].view(shape)

    kv_width = width // heads * kv_heads
    state = {"model.embed_tokens.weight": take(abs(vocabulary), width)}
    stacks = {
        "input_layernorm": take(depth, width),
        "self_attn.q_proj": take(depth, width, width),
        "self_attn.k_proj": take(depth, kv_width, width),
        "self_attn.v_proj": take(depth, kv_width, width),
        "self_attn.o_proj": take(depth, width, width),
        "post_attention_layernorm": take(depth, width),
        "mlp.gate_proj": take(depth, inner, width),
        "mlp.down_proj": take(depth, width, inner),
        "mlp.up_proj": take(depth, inner, width),
    }
    state["model.norm.weight"] = take(width)
    take(2, context, width // heads // 2)  # the rotary table, which transformers computes itself
    state["lm_head.weight"] = state["model.embed_tokens.weight"] if vocabulary > 0 else take(-vocabulary, width)
    if used != len(numbers):
        msg = f"{path} holds {len(numbers)} numbers; its header calls for {used}"
        raise ValueError(msg)
    for layer in range(depth):
        for name, stack in stacks.items():
            state[f"model.layers.{layer}.{name}.weight"] = stack[layer]
        for name, count in (("q_proj", heads), ("k_proj", kv_heads)):
            key = f"model.layers.{layer}.self_attn.{name}.weight"
            state[key] = _half_split(state[key], count)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def convert(data_dir: Path, out: Path) -> Path:
    """Write the trained model and its tokenizer below `data_dir` as a Hugging Face checkpoint into `out`."""
    model = _read_model(data_dir / _MODEL)
    model.save_pretrained(out)
    pieces(data_dir).fast(model.config.max_position_embeddings).save_pretrained(out)
    return out


def pieces(data_dir: Path) -> Pieces:
    """Return the vocabulary with the reference encoder."""
    return Pieces.read(data_dir / _PIECES)


def stories(data_dir: Path) -> list[str]:
    """Return the 120 stories that the published perplexity is measured on."""
    text = (data_dir / _TEXT).read_text(encoding="utf-8")
    parts = (part.strip() for part in re.split(r"\n\n(?=Once upon|One day|There was|In a|Lily|Tom)", text))
    return [part for part in parts if len(part) > 300][1:121]
