"""Train the small language model that ships with the package, on the standard library's docstrings.

    python scripts/bundled_model/train.py --out DIR [--texts DIR]

``--out`` receives a model folder in the Hugging Face layout and ``training.json`` with the measurements; ``--texts``
receives the calibration text, the held-out text and the notice for both.  The held-out perplexity is measured on the
files as saved (bfloat16 weights, float32 arithmetic), beside that of a Kneser-Ney trigram on the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tokenizers
import torch
import transformers
from corpus import Corpus, as_text, build_corpus, calibration_sample, licence_text
from kneser_ney import KneserNey, check_sums_to_one
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

END_OF_TEXT = "<|endoftext|>"
WEIGHTS_LIMIT_BYTES = 4_000_000
REQUIRED_GAIN = 0.15


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome, apart from the text and the versions of the libraries."""

    seed: int = 2024
    vocab_size: int = 1536
    hidden_size: int = 192
    layers: int = 4
    intermediate_size: int = 512
    heads: int = 4
    kv_heads: int = 2
    context: int = 256
    batch: int = 8
    steps: int = 4500
    warmup_steps: int = 200
    peak_rate: float = 2e-3
    final_rate: float = 2e-5
    weight_decay: float = 0.3
    dropout: float = 0.1
    clip_norm: float = 1.0
    validate_every: int = 250
    patience: int = 4


def train_tokenizer(text: str, settings: Settings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which can encode any text and gives it back unchanged."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=settings.context,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    # Not the tokenizer's own call: that one warns about texts longer than the model's context.
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return torch.tensor(encoding.ids, dtype=torch.long)


def new_model(settings: Settings, end_of_text: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        intermediate_size=settings.intermediate_size,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=end_of_text, eos_token_id=end_of_text)
    return model


def add_dropout(model: LlamaForCausalLM, rate: float) -> None:
    """Dropout on the embeddings and on what each block adds: Llama's configuration offers it for attention only."""

    def drop(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, rate, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)


def batches(stream: Tensor, settings: Settings) -> Iterator[Tensor]:
    """Shuffled batches of windows without end, each window one token longer than the context.

    Every pass cuts the stream at a new offset, so that a token is seen at ever other positions of a window.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    size = settings.context + 1
    while True:
        offset = int(torch.randint(size, (1,), generator=generator))
        number = (len(stream) - offset) // size
        windows = stream[offset : offset + number * size].view(number, size)
        order = torch.randperm(number, generator=generator)
        for start in range(0, number - settings.batch + 1, settings.batch):
            yield windows[order[start : start + settings.batch]]


def rate_at(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine from the peak to the final rate."""
    if step < settings.warmup_steps:
        return settings.peak_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.final_rate + (settings.peak_rate - settings.final_rate) * (1 + math.cos(math.pi * progress)) / 2


def new_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    # Norm weights are scales around one, so pulling them to zero would be no regularisation.
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.95), fused=True)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, stream: Tensor, context: int) -> tuple[float, int]:
    """Perplexity over non-overlapping whole windows, the first token of each not scored; and the number scored."""
    model.eval()
    number = len(stream) // context
    windows = stream[: number * context].view(number, context)
    total = 0.0
    for batch in windows.split(16):
        logits = model(input_ids=batch).logits[:, :-1].float()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        total += float(losses.double().sum())
    scored = number * (context - 1)
    return math.exp(total / scored), scored


def scored_positions(length: int, context: int) -> list[int]:
    """The positions which ``perplexity`` scores in a stream of this length."""
    return [position for position in range(length // context * context) if position % context]


@dataclass(frozen=True)
class Outcome:
    """How a training run ended; the weights kept are those of the best validation."""

    steps_run: int
    best_step: int
    validation_perplexity: float
    seconds: float


def train(model: LlamaForCausalLM, stream: Tensor, validation: Tensor, settings: Settings) -> Outcome:
    """Train until the last step, or until the validation text has not improved for ``patience`` checks."""
    add_dropout(model, settings.dropout)
    # At these sizes plain matrix products take half the time of PyTorch's fused attention on a processor.
    model.set_attn_implementation("eager")
    optimizer = new_optimizer(model, settings)
    source = batches(stream, settings)
    best, best_step, best_weights = math.inf, 0, {}
    started = time.monotonic()
    running, step = 0.0, 0
    for step in range(1, settings.steps + 1):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step - 1, settings)
        batch = next(source)
        # Half the time of float32 on processors with bfloat16 instructions; weights and gradients stay float32.
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        running += loss.item()
        if step % settings.validate_every and step != settings.steps:
            continue
        checked, _ = perplexity(model, validation, settings.context)
        elapsed = time.monotonic() - started
        left = elapsed / step * (settings.steps - step)
        since = step % settings.validate_every or settings.validate_every
        print(
            f"step {step}/{settings.steps}  train loss {running / since:.3f}  validation perplexity {checked:.3f}"
            f"  {elapsed / 60:.1f} min, {left / 60:.1f} min left",
            flush=True,
        )
        running = 0.0
        if checked < best:
            best, best_step = checked, step
            best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        elif step - best_step >= settings.patience * settings.validate_every:
            print(f"stopped early: no better validation since step {best_step}", flush=True)
            break
    model.load_state_dict(best_weights)
    return Outcome(step, best_step, best, time.monotonic() - started)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # written readable by its owner only, which an installed package must not be
    size = weights.stat().st_size
    if size > WEIGHTS_LIMIT_BYTES:
        raise RuntimeError(f"the weights take {size} bytes, more than {WEIGHTS_LIMIT_BYTES}")


def measure(folder: Path, training_text: str, heldout_text: str, settings: Settings) -> dict[str, object]:
    """Held-out perplexity of the saved model and of the n-gram baseline, read back from the files."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stream = encode(tokenizer, heldout_text)
    if tokenizer.decode(stream.tolist()) != heldout_text:
        raise RuntimeError("the tokenizer does not give the held-out text back unchanged")
    model_value, scored = perplexity(model, stream, settings.context)
    positions = scored_positions(len(stream), settings.context)
    assert len(positions) == scored
    counted, tokens = encode(tokenizer, training_text).tolist(), stream.tolist()
    values: dict[int, float] = {}
    for order in (3, 5):
        baseline = KneserNey(counted, settings.vocab_size, order)
        check_sums_to_one(baseline, tokens)
        values[order] = baseline.perplexity(tokens, positions)
    return {
        "model_perplexity": model_value,
        "kneser_ney_trigram_perplexity": values[3],
        "relative_reduction": 1 - model_value / values[3],
        "kneser_ney_5gram_perplexity": values[5],
        "heldout_tokens": len(tokens),
        "scored_tokens": scored,
        "bits_per_byte": math.log2(model_value) * len(tokens) / len(heldout_text.encode()),
        "protocol": (
            f"held-out text tokenised as a whole without special tokens; non-overlapping windows of {settings.context} "
            "tokens, an incomplete last one left out; the first token of each window not scored; bfloat16 weights, "
            "float32 arithmetic. Kneser-Ney: interpolated, modified (three discounts per order), counted on the "
            "training and the validation text; contexts from the token stream across the windows' edges"
        ),
    }


def describe(corpus: Corpus, texts: dict[str, str], tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    parts = {"train": corpus.train, "validation": corpus.validation, "heldout": corpus.heldout}
    parts["calibration"] = calibration_sample(corpus.train)
    return {
        name: {
            "modules": len(modules),
            "docstrings": sum(len(module.docstrings) for module in modules),
            "bytes": len(texts[name].encode()),
            "tokens": len(encode(tokenizer, texts[name])),
            "sha256": hashlib.sha256(texts[name].encode()).hexdigest(),
        }
        for name, modules in parts.items()
    }


def notice() -> str:
    return f"""The texts calibration.txt and heldout.txt in this folder are docstrings of the standard library of
Python {platform.python_version()}. They are unchanged in wording; they were taken out of the source files, repeats were
dropped, and a selection was joined with empty lines between. The model and the tokenizer in the folder model/
were trained on docstrings of the same library.

Copyright (c) 2001 Python Software Foundation; All Rights Reserved
(the licence below has the years in full)

Single modules of the library have further authors, whom the documentation of Python names under "Licenses and
Acknowledgements for Incorporated Software". The licence file of that Python version follows in full; it holds the
PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2, under which the texts are distributed.

{"-" * 80}

{licence_text()}"""


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"calibration.txt": texts["calibration"], "heldout.txt": texts["heldout"], "NOTICE.txt": notice()}
    for name, content in contents.items():
        # Written aside and renamed, so that a reader never meets half a file.
        aside = folder / f"{name}.partial"
        aside.write_text(content, encoding="utf-8", newline="\n")
        aside.replace(folder / name)


def put_in_place(made: Path, final: Path) -> None:
    """Rename the finished folder to its place; what was there before goes only once the new one is complete."""
    before = final.with_name(f"{final.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():
        final.rename(before)
    made.rename(final)
    shutil.rmtree(before, ignore_errors=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; replaced if it exists")
    parser.add_argument("--texts", type=Path, help="folder for calibration.txt, heldout.txt and NOTICE.txt")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="random seed (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    started = time.monotonic()
    settings = replace(Settings(), steps=arguments.steps, seed=arguments.seed)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(settings.seed)

    corpus = build_corpus()
    texts = {name: as_text(getattr(corpus, name)) for name in ("train", "validation", "heldout")}
    texts["calibration"] = as_text(calibration_sample(corpus.train))
    if any(END_OF_TEXT in text for text in texts.values()):
        raise RuntimeError(f"the text holds {END_OF_TEXT}, which must stay a special token")
    tokenizer = train_tokenizer(texts["train"], settings)
    described = describe(corpus, texts, tokenizer)
    print(json.dumps(described, indent=1), flush=True)
    if arguments.texts:
        write_texts(arguments.texts, texts)

    model = new_model(settings, tokenizer.eos_token_id)
    parameters = model.num_parameters()
    print(f"{parameters} parameters", flush=True)
    outcome = train(model, encode(tokenizer, texts["train"]), encode(tokenizer, texts["validation"]), settings)

    made = arguments.out.with_name(f"{arguments.out.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    save(model, tokenizer, made)
    measured = measure(made, texts["train"] + texts["validation"], texts["heldout"], settings)
    record = {
        "command": f"python scripts/bundled_model/train.py --out DIR --steps {settings.steps} --seed {settings.seed}",
        "measured": measured,
        "corpus": described,
        "settings": asdict(settings),
        "training": asdict(outcome),
        "parameters": parameters,
        "weights_bytes": (made / "model.safetensors").stat().st_size,
        "total_seconds": time.monotonic() - started,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (made / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8", newline="\n")
    put_in_place(made, arguments.out)
    reduction = measured["relative_reduction"]
    assert isinstance(reduction, float)
    print(f"held-out perplexity: model {measured['model_perplexity']:.3f}, ", end="")
    print(f"Kneser-Ney trigram {measured['kneser_ney_trigram_perplexity']:.3f}: {reduction:.1%} lower")
    if reduction < REQUIRED_GAIN:
        raise SystemExit(f"the model should be at least {REQUIRED_GAIN:.0%} below the trigram")


if __name__ == "__main__":
    main()
