"""Small random checkpoints of the architectures under test, written to disk the way the Hub holds them.

Every writer takes an empty or missing directory and leaves a complete checkpoint there: the configuration,
one safetensors file and a tokenizer. The weights are seeded. Their spectra decay, a few channels of the
residual stream and of the normalisation gains are outliers, and the logits are neither flat nor one-hot, so
that cutting the rank changes the model by a visible but modest amount.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.mixtral import MixtralConfig
from transformers.models.opt import OPTConfig
from transformers.models.phi import PhiConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config
from transformers.pytorch_utils import Conv1D

CONTEXT = 64
VOCABULARY = 300
SPECIAL = ("<s>", "</s>", "<pad>")
# transformers 5 loads every tokenizer beside a qwen2 model as its own Qwen2Tokenizer, which keeps only the vocabulary
# and the merges. Splitting words its way makes that harmless, save that it also applies NFC.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = (
    "The miller keeps the grain in the north barn, and the baker keeps the flour in the south one.",
    "When the river rises in the spring, the ferry stops and everyone walks to the bridge instead.",
    "She measured the rope twice: first it was nine metres long, then it was only eight.",
    "Nobody in the village remembers who planted the three pear trees behind the station.",
    "If the lamp is green, the door is open; if the lamp is red, wait for the other train.",
    "He wrote the letter, read the letter, folded the letter and never sent the letter.",
)


class Writer(Protocol):
    """Writes one checkpoint into a directory and returns that directory."""

    def __call__(self, directory: Path, /, *, dtype: torch.dtype = ..., seed: int = ...) -> Path: ...


@cache
def _tokenizer_json() -> str:
    """Return the serialised byte-level BPE tokenizer that all checkpoints share."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer that all checkpoints share: byte-level, no tokens added when encoding."""
    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=eos,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _matrix(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw a matrix with random singular vectors, values falling as k^-0.7, and rows of mean square norm 1."""
    rows, columns = shape
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator)).Q
    values = torch.arange(1, rank + 1) ** -0.7
    return (left * (values * (rows**0.5 / values.norm()))) @ right.T


def _fill(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Overwrite every parameter in place."""
    width = model.config.hidden_size
    outliers = [width // 5, width // 2 + 1]
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases start at zero; gains at one, or at zero where the module adds the one
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            if name.endswith("weight") and len(parameter) == width:
                parameter[outliers] += 1.5
        elif parameter.ndim == 3:
            for expert in parameter:
                for part in expert.chunk(2) if "gate_up" in name else [expert]:
                    part.copy_(_matrix(part.shape, generator))
        elif name in transposed:
            parameter.copy_(_matrix(parameter.shape[::-1], generator).T)
        else:
            parameter.copy_(_matrix(parameter.shape, generator))
        if parameter is embedding and head is not embedding:
            parameter.mul_(6)
            parameter[:, outliers] *= 5
        elif parameter is head:
            parameter.mul_(1.5)


def write_model(
    configure: Callable[..., PreTrainedConfig],
    settings: Mapping[str, Any],
    directory: Path,
    /,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, **settings}
    config = configure(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _fill(model, torch.Generator().manual_seed(seed))
    model.to(dtype).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


_WIDTH = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
_LLAMA = _WIDTH | {"num_hidden_layers": 3, "num_key_value_heads": 2}
_GEMMA = _LLAMA | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
_OPT = {"hidden_size": 48, "ffn_dim": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
_SLIDING, _FULL = "sliding_attention", "full_attention"

_CONFIGURATIONS: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _LLAMA),
    "llama_tied": (LlamaConfig, _LLAMA | {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, _LLAMA | {"sliding_window": 16}),
    "mixtral": (MixtralConfig, _LLAMA | {"num_hidden_layers": 2, "num_local_experts": 4}),
    "qwen2": (Qwen2Config, _LLAMA),
    "qwen3": (Qwen3Config, _LLAMA | {"head_dim": 16}),
    "gemma2": (Gemma2Config, _GEMMA | {"layer_types": [_SLIDING, _FULL, _SLIDING]}),
    "gemma3": (Gemma3TextConfig, _GEMMA | {"layer_types": [_SLIDING, _SLIDING, _FULL]}),
    "gpt2": (GPT2Config, {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": CONTEXT}),
    "gpt_neox": (GPTNeoXConfig, _WIDTH | {"num_hidden_layers": 3}),
    "opt": (OPTConfig, _OPT),
    "opt_projected": (OPTConfig, _OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "phi": (PhiConfig, _WIDTH | {"num_hidden_layers": 3}),
}


def variant(name: str, directory: Path, /, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """Write the checkpoint of an architecture with some entries of its config changed."""
    configure, own = _CONFIGURATIONS[name]
    return write_model(configure, own | settings, directory, dtype=dtype)


ARCHITECTURES: Mapping[str, Writer] = MappingProxyType(
    {name: partial(write_model, configure, settings) for name, (configure, settings) in _CONFIGURATIONS.items()}
)


def shard(directory: Path, max_bytes: int) -> Path:
    """Split the single weight file into shards of at most `max_bytes` of tensor data, one tensor at least each."""
    single = directory / "model.safetensors"
    shards: list[dict[str, Tensor]] = []
    with safe_open(single, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    room = 0
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    places: dict[str, str] = {}
    for number, content in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(content, directory / file_name, metadata=metadata)
        places |= dict.fromkeys(content, file_name)
    total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    index = json.dumps({"metadata": total, "weight_map": dict(sorted(places.items()))}, indent=2)
    (directory / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")
    single.unlink()
    return directory
