"""Wrong input, options and places: one sentence that names the thing and the way out, and nothing left behind."""

import json
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    CALIBRATED,
    Killer,
    calibration_text,
    cli,
    edit_json,
    edit_tensor,
    edit_tensors,
    executable,
    file_of,
    left_behind,
    refused,
    tiny,
    tree,
)
from torch import Tensor

import eckart
from eckart.errors import EckartError
from eckart.model.checkpoint import _is_finite, _pieces
from eckart.model.evaluate import evaluate
from eckart.model.output import work_folder
from eckart.model.text import ids_for

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    tiny(folder / "model", sharded=True)
    tiny(folder / "single")
    calibration_text(folder / "text.txt")
    return folder


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """A sharded model that may be damaged."""
    return Path(shutil.copytree(pristine / "model", tmp_path / "model"))


@pytest.fixture
def single(pristine: Path, tmp_path: Path) -> Path:
    """A model in one file that may be damaged."""
    return Path(shutil.copytree(pristine / "single", tmp_path / "single"))


@pytest.fixture
def text(pristine: Path) -> Path:
    return pristine / "text.txt"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def compress(model: Path | str, out: Path, *options: object) -> list[object]:
    return ["compress", model, "-o", out, "--keep", "0.7", *options]


def told(sentence: str, *words: object) -> None:
    """The sentence holds every one of these."""
    missing = [str(word) for word in words if str(word) not in sentence]
    assert not missing, f"{missing} not in: {sentence}"
    assert len(sentence) < 700


# ---- damaged weight files -------------------------------------------------------------------------------------------


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The table at the head of a safetensors file, and the data after it."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def put_header(path: Path, table: object, data: bytes) -> None:
    head = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def lying(change: Callable[[dict[str, Any]], object]) -> Edit:
    """Edits the first tensor's entry in the header of the middle shard."""

    def edit(folder: Path) -> None:
        table, data = header_of(folder / SHARDS[1])
        name = next(name for name in table if name != "__metadata__")
        change(table[name])
        put_header(folder / SHARDS[1], table, data)

    return edit


def cut_to(size: int) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / SHARDS[1]
        path.write_bytes(path.read_bytes()[:size])

    return edit


def announced(size: int) -> Edit:
    """Changes the length that the file gives its header."""

    def edit(folder: Path) -> None:
        path = folder / SHARDS[1]
        path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])

    return edit


DAMAGES: dict[str, Edit] = {
    "missing": lambda folder: (folder / SHARDS[1]).unlink(),
    "empty": cut_to(0),
    "cut in the length": cut_to(5),
    "cut in the header": cut_to(100),
    "cut in the data": cut_to(10_000),
    "one byte short": lambda folder: cut_to((folder / SHARDS[1]).stat().st_size - 1)(folder),
    "longer than it says": lambda folder: (folder / SHARDS[1]).open("ab").write(b"more"),
    "header longer than the file": announced(10**6),
    "header longer than anything": announced(2**63),
    "header shorter than it is": announced(20),
    "header without length": announced(0),
    "offsets beyond the end": lying(lambda entry: entry.update(data_offsets=[0, 10**9])),
    "offsets back to front": lying(lambda entry: entry["data_offsets"].reverse()),
    "offsets below zero": lying(lambda entry: entry.update(data_offsets=[-8, entry["data_offsets"][1]])),
    "offsets of too few bytes": lying(lambda entry: entry.update(data_offsets=[0, 4])),
    "offsets of another tensor": lying(lambda entry: entry.update(data_offsets=[4, entry["data_offsets"][1] + 4])),
    "shape of more than is there": lying(lambda entry: entry.update(shape=[1024, 1024])),
    "shape that overflows": lying(lambda entry: entry.update(shape=[2**40, 2**40])),
    "no offsets": lying(lambda entry: entry.pop("data_offsets")),
    "unknown dtype": lying(lambda entry: entry.update(dtype="F7")),
    "header no JSON": lambda folder: put_header(folder / SHARDS[1], b"{]", b""),
    "header no table": lambda folder: put_header(folder / SHARDS[1], b"[1, 2]", b""),
    "header not UTF-8": lambda folder: put_header(folder / SHARDS[1], b'{"\xff": 1}', b""),
    "a directory": lambda folder: ((folder / SHARDS[1]).unlink(), (folder / SHARDS[1]).mkdir()),
    "a pickle": lambda folder: torch.save({"a": torch.ones(2)}, folder / SHARDS[1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(model: Path, text: Path, out: Path, damage: str) -> None:
    DAMAGES[damage](model)
    for options in (["--recipe", "svd"], ["--calibration", text, *CALIBRATED]):
        told(refused(*compress(model, out, *options), out=out), model / SHARDS[1])
    told(refused("inspect", model), model / SHARDS[1])
    told(refused("eval", model, "--text", text), model / SHARDS[1])


def test_the_way_out_of_a_missing_or_damaged_shard_is_said(model: Path, out: Path) -> None:
    cut_to(10_000)(model)
    told(refused(*compress(model, out), out=out), "truncated or damaged", "fetch it again")
    (model / SHARDS[1]).unlink()
    told(refused(*compress(model, out), out=out), "is missing", "download the model again")


def test_a_pickled_model_is_refused_with_the_way_to_convert(single: Path, text: Path, out: Path) -> None:
    (single / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2, 2)}, single / "pytorch_model.bin")
    for command in (compress(single, out), ["inspect", single], ["eval", single, "--text", text]):
        told(refused(*command, out=out), single, "pytorch_model.bin", "pickled", "save_pretrained")


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "weights.pkl"])
def test_any_kind_of_pickle_is_refused(single: Path, out: Path, name: str) -> None:
    (single / "model.safetensors").rename(single / name)
    told(refused(*compress(single, out), out=out), name, "pickled")


def test_a_folder_without_weights_is_no_model(single: Path, out: Path) -> None:
    (single / "model.safetensors").unlink()
    told(refused(*compress(single, out), out=out), single, "model.safetensors", "is it a Hugging Face model directory?")


# ---- the index ------------------------------------------------------------------------------------------------------


def in_index(change: Callable[[dict[str, str]], object]) -> Edit:
    return lambda folder: edit_json(folder / INDEX, lambda table: change(table["weight_map"]))


@pytest.mark.parametrize("place", ["../model/{}", "/etc/{}", "sub/{}", "..", ".", "", "{}/"])
def test_an_index_that_points_outside_is_refused(model: Path, out: Path, place: str) -> None:
    target = place.format(SHARDS[0])
    in_index(lambda shards: shards.update({"model.norm.weight": target}))(model)
    told(refused(*compress(model, out), out=out), model / INDEX, "points outside", repr(target), "refused")


@pytest.mark.parametrize(
    "table", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": None}, {"weight_map": {"a": ["b"]}}]
)
def test_an_index_without_a_map_is_refused(model: Path, out: Path, table: dict[str, Any]) -> None:
    (model / INDEX).write_text(json.dumps(table))
    told(refused(*compress(model, out), out=out), model / INDEX, "weight_map")


def test_an_index_that_is_no_json_is_refused(model: Path, out: Path) -> None:
    (model / INDEX).write_text("{")
    told(refused(*compress(model, out), out=out), model / INDEX, "is not valid JSON")


def test_an_empty_index_is_refused(model: Path, out: Path) -> None:
    (model / INDEX).write_text('{"weight_map": {}}')
    told(refused(*compress(model, out), out=out), model)


def test_a_tensor_in_another_shard_than_the_index_says(model: Path, out: Path) -> None:
    in_index(lambda shards: shards.update({"model.norm.weight": SHARDS[0]}))(model)
    told(refused(*compress(model, out), out=out), model / INDEX, "model.norm.weight", SHARDS[0], "restore the index")


def test_a_tensor_that_only_the_index_knows(model: Path, out: Path) -> None:
    in_index(lambda shards: shards.update({"model.other.weight": SHARDS[0]}))(model)
    told(refused(*compress(model, out), out=out), model / INDEX, "model.other.weight")


def test_a_tensor_in_two_shards(model: Path, out: Path) -> None:
    name = "model.norm.weight"
    where = file_of(model, name).name
    other = next(shard for shard in SHARDS if shard != where)
    edit_tensors(model / other, lambda table: table.update({name: torch.ones(16)}))
    told(refused(*compress(model, out), out=out), model, name, where, other, "keep one")


# ---- the numbers ----------------------------------------------------------------------------------------------------


def poisoned(tensor: Tensor, value: float) -> Tensor:
    tensor.view(-1)[tensor.numel() // 2] = value
    return tensor


TARGETS = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("recipe", ["svd", "asvd", "svd-llm"])
def test_nan_and_infinity_in_a_matrix_are_named(
    model: Path, text: Path, out: Path, name: str, value: float, recipe: str
) -> None:
    edit_tensor(model, name, lambda tensor: poisoned(tensor, value))
    outcome = cli(*compress(model, out, "--recipe", recipe, "--calibration", text, *CALIBRATED))
    assert outcome.code == 2, outcome.err
    told(outcome.sentence, file_of(model, name), name, "NaN or infinity")
    assert not out.exists()
    told(refused("inspect", model), file_of(model, name), name, "NaN or infinity")


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_elsewhere_are_named_where_the_model_is_run(
    model: Path, text: Path, out: Path, name: str, value: float
) -> None:
    edit_tensor(model, name, lambda tensor: tensor.fill_(value))
    outcome = cli(*compress(model, out, "--calibration", text, *CALIBRATED))
    assert outcome.code == 2, outcome.err
    told(outcome.sentence, name, "NaN or infinity")
    assert not out.exists()


def test_weights_whose_activations_overflow_are_refused(model: Path, text: Path, out: Path) -> None:
    edit_tensor(model, "model.layers.0.mlp.up_proj.weight", lambda tensor: tensor * 1e30)
    edit_tensor(model, "model.layers.0.mlp.down_proj.weight", lambda tensor: tensor * 1e30)
    outcome = cli(*compress(model, out, "--calibration", text, *CALIBRATED))
    assert outcome.code == 2, outcome.err
    assert outcome.sentence
    assert not out.exists()


def drop_tensor(folder: Path, name: str) -> None:
    path = file_of(folder, name)
    edit_tensors(path, lambda table: table.pop(name))
    if (folder / INDEX).exists():
        in_index(lambda shards: shards.pop(name))(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize("recipe", ["svd", "svd-llm"])
def test_a_weight_that_the_architecture_needs_is_missing(
    model: Path, text: Path, out: Path, name: str, recipe: str
) -> None:
    """Otherwise the result would be loaded with random numbers in its place."""
    drop_tensor(model, name)
    outcome = cli(*compress(model, out, "--recipe", recipe, "--calibration", text, *CALIBRATED))
    assert outcome.code == 2, outcome.err or outcome.out
    told(outcome.sentence, name)
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("recipe", ["svd", "svd-llm"])
def test_a_weight_of_another_shape_than_the_config_says(
    model: Path, text: Path, out: Path, name: str, recipe: str
) -> None:
    edit_tensor(model, name, lambda tensor: torch.cat([tensor, tensor]))
    outcome = cli(*compress(model, out, "--recipe", recipe, "--calibration", text, *CALIBRATED))
    assert outcome.code == 2, outcome.err or outcome.out
    told(outcome.sentence, name, "config.json")
    assert not out.exists()


def test_a_tensor_that_the_architecture_does_not_have_is_kept(model: Path, out: Path) -> None:
    """Some checkpoints carry buffers of older versions; they are no reason to refuse."""
    edit_tensors(model / SHARDS[0], lambda table: table.update({"rotary.inv_freq": torch.ones(4)}))
    in_index(lambda shards: shards.update({"rotary.inv_freq": SHARDS[0]}))(model)
    assert cli(*compress(model, out, "--recipe", "svd")).code == 0
    assert torch.equal(eckart.model.checkpoint.Checkpoint(out).read("rotary.inv_freq"), torch.ones(4))


# ---- the config -----------------------------------------------------------------------------------------------------


def test_no_config(model: Path, out: Path) -> None:
    (model / "config.json").unlink()
    told(refused(*compress(model, out), out=out), model / "config.json", "is missing", "Hugging Face model directory")


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": 1} x', b"\xff\xfe{}", b"[" * 100_000, b"NaN1"])
def test_a_config_that_is_no_json(model: Path, out: Path, data: bytes) -> None:
    (model / "config.json").write_bytes(data)
    told(refused(*compress(model, out), out=out), model / "config.json", "is not valid JSON", "restore it")


@pytest.mark.parametrize("data", ["[]", "1", "null", '"text"'])
def test_a_config_that_is_no_table(model: Path, out: Path, data: str) -> None:
    (model / "config.json").write_text(data)
    told(refused(*compress(model, out), out=out), model / "config.json", "holds no JSON object", "restore it")


CONFIGS: dict[str, dict[str, object]] = {
    "unknown type": {"model_type": "nosuch", "architectures": ["NoSuchForCausalLM"]},
    "no type": {"model_type": None},
    "type no text": {"model_type": ["llama"]},
    "an encoder and decoder": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
    "a picture model": {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
    "a width in words": {"hidden_size": "wide"},
    "no width": {"hidden_size": None},
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": None},
    "a negative vocabulary": {"vocab_size": -1},
    "fewer layers": {"num_hidden_layers": 1},
    "more layers": {"num_hidden_layers": 3},
    "no layers": {"num_hidden_layers": 0},
    "another width": {"hidden_size": 32},
    "another vocabulary": {"vocab_size": 200},
    "an unknown activation": {"hidden_act": "nosuch"},
    "an unknown rotation": {"rope_parameters": {"rope_type": "nosuch"}},
    "a rotation of another kind": {"rope_parameters": "none"},
    "an unknown dtype": {"dtype": "float7"},
}


@pytest.mark.parametrize("recipe", ["svd", "svd-llm"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_does_not_fit(model: Path, text: Path, out: Path, kind: str, recipe: str) -> None:
    edit_json(model / "config.json", lambda table: table.update(CONFIGS[kind]))
    outcome = cli(*compress(model, out, "--recipe", recipe, "--calibration", text, *CALIBRATED))
    if outcome.code == 0:  # whatever transformers takes for right must give a result that it loads
        from transformers import AutoModelForCausalLM

        _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not report["missing_keys"], report
        assert not report["mismatched_keys"], report
        return
    assert outcome.code == 2, outcome.err
    told(outcome.sentence, model)
    assert not out.exists()


def test_code_from_the_checkpoint_is_not_run(model: Path, text: Path, out: Path) -> None:
    (model / "evil.py").write_text(f"open({str(out)!r}, 'w').write('ran')\nclass C: pass\nclass M: pass\n")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit_json(model / "config.json", lambda table: table.update(auto_map=auto, model_type="evil"))
    told(refused(*compress(model, out), out=out), model / "config.json", "auto_map", "not run")
    refused("eval", model, "--text", text)
    assert not out.exists()


def test_a_quantised_model_is_refused(model: Path, out: Path) -> None:
    edit_json(model / "config.json", lambda t: t.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    told(refused(*compress(model, out), out=out), model, "already compressed or quantised", "original checkpoint")


def test_a_compressed_model_is_refused_as_input(model: Path, tmp_path: Path, out: Path) -> None:
    assert cli(*compress(model, tmp_path / "first", "--recipe", "svd")).code == 0
    sentence = refused(*compress(tmp_path / "first", out, "--recipe", "svd"), out=out)
    told(sentence, tmp_path / "first", "already compressed", "original checkpoint")


def test_an_original_is_no_compressed_model(model: Path, out: Path) -> None:
    told(refused("verify", model), model, "eckart.json", "not made by eckart compress")
    told(refused("densify", model, "-o", out, out=out), model, "is not compressed by eckart")


@pytest.mark.parametrize("options", [("--exclude", "*"), ("--only", "embed_tokens", "--exclude", "*embed*")])
def test_a_model_without_linear_maps(model: Path, out: Path, options: tuple[str, ...]) -> None:
    told(refused(*compress(model, out, *options), out=out), model, "no linear map to compress is left", "--exclude")


@pytest.mark.parametrize("option", ["--only", "--exclude"])
def test_a_pattern_that_fits_nothing(model: Path, out: Path, option: str) -> None:
    sentence = refused(*compress(model, out, option, "q_prj"), out=out)
    told(sentence, "'q_prj'", "fits no matrix", "names look like")
    told(refused("inspect", model, option, "q_prj"), "'q_prj'", "fits no matrix", "names look like")


# ---- texts and tokenizers -------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[bytes | None, list[str]]] = {
    "missing": (None, ["cannot be read"]),
    "empty": (b"", ["holds no text"]),
    "blank": (b" \n\t\n", ["holds no text"]),
    "not UTF-8": ("Grüße ".encode("latin-1") * 999, ["is not UTF-8"]),
    "binary": (bytes(range(256)) * 10, ["is not UTF-8"]),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_wrong_text(model: Path, tmp_path: Path, out: Path, kind: str) -> None:
    data, words = TEXTS[kind]
    path = tmp_path / "words.txt"
    if data is not None:
        path.write_bytes(data)
    told(refused(*compress(model, out, "--calibration", path), out=out), path, *words)
    told(refused("eval", model, "--text", path), path, *words)


def test_a_folder_for_a_text(model: Path, tmp_path: Path, out: Path) -> None:
    told(refused(*compress(model, out, "--calibration", tmp_path), out=out), tmp_path)
    told(refused("eval", model, "--text", tmp_path), tmp_path)


def test_a_text_that_is_too_short(model: Path, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("The miller keeps the grain.")
    sentence = refused(*compress(model, out, "--calibration", path), out=out)
    told(sentence, "fewer than one window of 64", "longer text", "--window")
    path.write_text("a")
    told(refused("eval", model, "--text", path), path, "fewer than two tokens")


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--ranks", "allocated")], ids=" ".join)
def test_a_rank_beyond_the_tokens(model: Path, text: Path, out: Path, options: tuple[str, ...]) -> None:
    """What a metric of second moments has not seen would be left to chance; the size of each entry is known from any text."""
    command = ("compress", model, "-o", out, "--keep", "0.9", "--ranks", "uniform", "--calibration", text, *options)
    windows = ("--window", "2", "--restart", "--tokens")
    outcome = cli(*command, *windows, 2)
    assert outcome.code == 2
    told(outcome.sentence, "what is left of model.layers.", "its 2 tokens are too few", "--tokens", "--calibration")
    least = int(outcome.sentence.split("at least ")[1].split()[0])
    if "allocated" not in options:
        assert cli(*command, *windows, least - 1).code == 2
        assert cli(*command, *windows, least).code == 0
        out = out.with_name("asvd")
    assert cli(*compress(model, out, "--recipe", "asvd", "--calibration", text, *windows, 2)).code == 0


def test_a_text_of_two_tokens_has_one_to_predict(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text(next(text for text in ("ab", "a b", "a a", "the miller", "qz") if len(ids_for(model, text)) == 2))
    (score,) = evaluate(model, [path]).values()
    assert score.tokens == 1


def test_no_tokenizer(model: Path, text: Path, out: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    told(refused(*compress(model, out, "--calibration", text), out=out), model, "no tokenizer", "tokenizer.json")
    told(refused("eval", model, "--text", text), model, "no tokenizer")
    assert cli(*compress(model, out, "--recipe", "svd")).code == 0


@pytest.mark.parametrize("data", ["", "{", "{}", '{"model": {"type": "nosuch"}}', "[]"])
def test_a_damaged_tokenizer(model: Path, text: Path, out: Path, data: str) -> None:
    (model / "tokenizer.json").write_text(data)
    told(refused(*compress(model, out, "--calibration", text), out=out), model, "tokenizer")
    told(refused("eval", model, "--text", text), model, "tokenizer")


def test_a_tokenizer_of_another_model(pristine: Path, text: Path, tmp_path: Path, out: Path) -> None:
    """Ids beyond the embedding end in a sentence, not in an index error."""
    from runs import SIZES
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, vocab_size=100, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    for path in (pristine / "single").glob("tokenizer*"):
        shutil.copy(path, tmp_path / "small")
    told(refused(*compress(tmp_path / "small", out, "--calibration", text), out=out), tmp_path / "small", "tokenizer")
    told(refused("eval", tmp_path / "small", "--text", text), tmp_path / "small", "tokenizer")


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["0", "1.5", "nan", "-0.1", "inf", "1.0000001", "-inf", "0.0"])
def test_a_share_that_makes_no_sense(model: Path, out: Path, keep: str) -> None:
    sentence = refused("compress", model, "-o", out, "--keep", keep, out=out)
    told(sentence, "--keep is", "above 0 and at most 1")


@pytest.mark.parametrize("keep", ["half", "", "0,8", "80%"])
def test_a_share_that_is_no_number(model: Path, out: Path, keep: str) -> None:
    told(refused("compress", model, "-o", out, "--keep", keep, out=out), "--keep")


def test_neither_or_both_sizes(model: Path, out: Path) -> None:
    words = ("either --keep FRACTION or --bytes SIZE",)
    told(refused("compress", model, "-o", out, out=out), *words)
    told(refused(*compress(model, out, "--bytes", "1MB"), out=out), *words)


@pytest.mark.parametrize(
    "size", ["", "big", "MB", "1.2.3MB", "12XB", "nan", "inf", "1e999", "0x10", "12 34", "--", "5Q"]
)
def test_a_size_that_cannot_be_read(model: Path, out: Path, size: str) -> None:
    told(refused("compress", model, "-o", out, f"--bytes={size}", out=out), "--bytes is", repr(size), "12MB")


@pytest.mark.parametrize("size", ["0", "-5MB", "0.1"])
def test_a_size_of_nothing(model: Path, out: Path, size: str) -> None:
    told(refused("compress", model, "-o", out, f"--bytes={size}", out=out), "--bytes is", "above 0")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tokens", "0"), ["--tokens is 0"]),
        (("--tokens", "-5"), ["--tokens is -5"]),
        (("--window", "0"), ["--window is 0", "2 to 64"]),
        (("--window", "1"), ["--window is 1", "2 to 64"]),
        (("--window", "65"), ["--window is 65", "2 to 64"]),
        (("--device", "abacus"), ["--device is 'abacus'", "cpu"]),
        (("--device", ""), ["--device is ''", "cpu"]),
        (("--device", "cuda:99"), ["--device is 'cuda:99'", "cpu"]),
        (("--device", "meta"), ["--device is 'meta'"]),
        (("--recipe", "svd-lm"), ["'svd-lm'", "svd-llm", "asvd", "TOML"]),
        (("--recipe", ""), ["''", "svd-llm"]),
        (("--recipe", "absent.toml"), ["absent.toml", "cannot be read"]),
        (("--ranks", "random"), ["--ranks", "'random'", "uniform", "allocated"]),
        (("--seed", "one"), ["--seed", "integer"]),
        (("--tokens", "1.5"), ["--tokens", "integer"]),
        (("--kep", "0.5"), ["--kep", "--keep", "--help"]),
        (("extra",), ["extra", "--help"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option(model: Path, text: Path, out: Path, options: tuple[str, ...], words: list[str]) -> None:
    told(refused(*compress(model, out, "--calibration", text, *options), out=out), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nosuch",), ["nosuch", "--help"]),
        (("compress",), ["argument", "model", "--help"]),
        (("compress", "model"), ["--output", "--help"]),
        (("eval", "model"), ["--text", "--help"]),
        (("--nosuch",), ["--nosuch", "--help"]),
        (("recipes", "nosuch"), ["'nosuch'", "svd-llm"]),
        (("densify", "x", "--quickly"), ["--quickly"]),
    ],
    ids=" ".join,
)
def test_a_wrong_command(arguments: tuple[str, ...], words: list[str]) -> None:
    told(refused(*arguments), *words)


def test_an_eval_on_a_device_that_is_not_there(model: Path, text: Path) -> None:
    told(refused("eval", model, "--text", text, "--device", "abacus"), "abacus", "cpu")
    told(refused("eval", model, "--text", text, "--window", "65"), "--window is 65")


# ---- the smallest budget --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--only", "q_proj"), ("--only", "k_proj", "--only", "*.mlp.*")])
@pytest.mark.parametrize("recipe", ["svd", "svd-llm"])
def test_the_smallest_share_is_said_and_works(
    model: Path, text: Path, out: Path, options: tuple[str, ...], recipe: str
) -> None:
    rest = ("--recipe", recipe, "--calibration", text, *CALIBRATED, *options)
    sentence = refused("compress", model, "-o", out, "--keep", "0.0001", *rest, out=out)
    told(sentence, "--keep is 0.0001", "smallest rank", "give at least")
    said = next(word for word in sentence.replace(",", " ").split() if word.startswith("0.") and word != "0.0001")
    outcome = cli("compress", model, "-o", out, "--keep", said, *rest, "--json")
    assert outcome.code == 0, outcome.err
    assert {matrix["rank"] for matrix in json.loads(outcome.out)["matrices"]} == {1}


@pytest.mark.parametrize("recipe", ["svd", "svd-llm"])
def test_the_smallest_size_is_said_and_works(model: Path, text: Path, out: Path, recipe: str) -> None:
    rest = ("--recipe", recipe, "--calibration", text, *CALIBRATED)
    sentence = refused("compress", model, "-o", out, "--bytes", "10kB", *rest, out=out)
    told(sentence, "--bytes is 10000", "smallest rank", "give at least")
    said = int(sentence.split(" take ")[1].split()[0])
    refused("compress", model, "-o", out, "--bytes", said - 1, *rest, out=out)
    outcome = cli("compress", model, "-o", out, "--bytes", said, *rest)
    assert outcome.code == 0, outcome.err
    assert sum(path.stat().st_size for path in out.glob("*.safetensors")) == said


@pytest.mark.parametrize("option", ["--keep", "--bytes"])
def test_a_recipe_that_leaves_all_of_it_dense_says_so(model: Path, text: Path, out: Path, option: str) -> None:
    """Only blocks pay under this recipe, and what is named lies outside of them."""
    whole = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    value, words = (0.5, ["1.0000"]) if option == "--keep" else (whole - 1000, ["more"])
    rest = ("--recipe", "llm-rom", "--only", "lm_head", "--calibration", text, *CALIBRATED)
    outcome = cli("compress", model, "-o", out, option, value, *rest)
    assert outcome.code == 2
    told(outcome.sentence, f"{option} is", "give", "--ranks uniform", *words)
    outcome = cli("compress", model, "-o", out, option, value, *rest, "--ranks", "uniform", "--restart")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("size", range(45_000, 62_000, 2_777))
def test_a_size_is_kept_to_the_byte(model: Path, out: Path, size: int) -> None:
    outcome = cli("compress", model, "-o", out, "--bytes", size, "--recipe", "svd")
    assert outcome.code == 0, outcome.err
    assert sum(path.stat().st_size for path in out.glob("*.safetensors")) <= size


# ---- recipes in files -----------------------------------------------------------------------------------------------

PARTS = {"metric": 'part = "Gram"', "approx": 'part = "LowRank"', "allocate": 'part = "Uniform"'}


def recipe_text(head: str = "", **parts: str | None) -> str:
    tables = [f"[{role}]\n{body}" for role, body in (PARTS | parts).items() if body is not None]
    return "\n".join([head, *tables])


RECIPES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", ["[metric] needs part"]),
    "no TOML": ("= 3", ["is not valid TOML"]),
    "not UTF-8": (b'# \xff\n[metric]\npart="Gram"', ["is not valid TOML"]),
    "a table twice": (recipe_text() + "\n[metric]\n", ["is not valid TOML"]),
    "no metric": (recipe_text(metric=None), ["[metric] needs part", "Gram", "Plain"]),
    "no approximation": (recipe_text(approx=None), ["[approx] needs part", "LowRank"]),
    "no allocation": (recipe_text(allocate=None), ["[allocate] needs part", "Uniform"]),
    "no part": (recipe_text(metric="power = 1"), ["[metric] needs part"]),
    "an unknown part": (recipe_text(metric='part = "Gramm"'), ["[metric] needs part", "Gram"]),
    "a part of another role": (recipe_text(metric='part = "LowRank"'), ["[metric] needs part"]),
    "a part that is a list": (recipe_text(metric='part = ["Gram"]'), ["[metric] needs part"]),
    "a part that is a table": (recipe_text(metric="part = {Gram = 1}"), ["[metric] needs part"]),
    "a part that is a number": (recipe_text(metric="part = 3"), ["[metric] needs part"]),
    "a role that is text": ('metric = "Gram"\n' + recipe_text(metric=None), ["[metric] needs part"]),
    "an unknown role": (recipe_text("[gauge]\npart = 'x'"), ["unknown entry 'gauge'", "metric"]),
    "an unknown setting": (recipe_text(metric='part = "ActivationScale"\npwr = 1'), ["no setting 'pwr'", "power"]),
    "a setting of a part without": (recipe_text(allocate='part = "Uniform"\nrank = 3'), ["no setting 'rank'", "none"]),
    "a negative accuracy": (recipe_text(approx='part = "LowRank"\naccuracy = -1'), ["accuracy", "not below 0"]),
    "a fraction of a node": (recipe_text(allocate='part = "Exact"\nnodes = 2.5'), ["nodes is 2.5", "whole number"]),
    "nodes below 0": (recipe_text(allocate='part = "Exact"\nnodes = -1'), ["nodes", "-1", "whole number"]),
    "a setting in words": (recipe_text(metric='part = "ActivationScale"\npower = "a"'), ["power is 'a'", "number"]),
    "a setting true": (recipe_text(metric='part = "ActivationScale"\npower = true'), ["power is True", "number"]),
    "a setting that is a list": (recipe_text(metric='part = "ActivationScale"\npower = [1]'), ["power is", "number"]),
    "a setting nan": (recipe_text(metric='part = "ActivationScale"\npower = nan'), ["power"]),
    "a setting infinite": (recipe_text(metric='part = "ActivationScale"\npower = inf'), ["power"]),
    "a setting out of range": (recipe_text(metric='part = "ActivationScale"\nfloor = -1'), ["floor"]),
    "a setting too large": (recipe_text(metric=f'part = "ActivationScale"\npower = {"9" * 400}'), ["power"]),
    "a number of many digits": (recipe_text(metric=f'part = "ActivationScale"\npower = {"9" * 5000}'), []),
    "deep brackets": ("a = " + "[" * 5000, ["TOML"]),
    "unknown statistics": (recipe_text('statistics = "both"'), ["statistics is 'both'", "original", "compressed"]),
    "statistics as a list": (recipe_text('statistics = ["original"]'), ["statistics is", "original"]),
    "statistics as a table": (recipe_text("[statistics]\nx = 1"), ["statistics is", "original"]),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_wrong_recipe_file(model: Path, text: Path, tmp_path: Path, out: Path, kind: str) -> None:
    data, words = RECIPES[kind]
    path = tmp_path / "mine.toml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    outcome = cli(*compress(model, out, "--recipe", path, "--calibration", text, *CALIBRATED))
    assert outcome.code == 2, outcome.err or outcome.out
    told(outcome.sentence, path, *words)
    assert left_behind(out) == []
    with pytest.raises(EckartError):
        eckart.read_recipe(path)


def test_a_right_recipe_file(model: Path, text: Path, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text('statistics = "compressed"', metric='part = "ActivationScale"\npower = 1'))
    assert cli(*compress(model, out, "--recipe", path, "--calibration", text, *CALIBRATED)).code == 0


def test_a_folder_for_a_recipe(model: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "dir.toml").mkdir()
    told(refused(*compress(model, out, "--recipe", tmp_path / "dir.toml"), out=out), "dir.toml", "cannot be read")


# ---- models by name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent", "./absent/model", "a/b/c", "~/model", "/absent/model"])
def test_a_model_that_is_not_there(text: Path, out: Path, name: str) -> None:
    for command in (compress(name, out), ["inspect", name], ["eval", name, "--text", text]):
        told(refused(*command, out=out), name, "name a Hugging Face model directory or a hub id")


def test_a_file_for_a_model(model: Path, out: Path) -> None:
    told(refused(*compress(model / SHARDS[0], out), out=out), SHARDS[0], "is not a directory")


@pytest.mark.parametrize("name", ["org/absent", "or g/x y", "org/--", "org/" + "x" * 200])
def test_a_hub_id_without_a_network(out: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told(refused(*compress(name, out), out=out), name, "is no local directory", "hub")


@pytest.mark.slow
def test_a_hub_that_does_not_answer(out: Path, tmp_path: Path) -> None:
    """In a process of its own: the address of the hub is read when its library is loaded."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [*executable(), *map(str, compress("org/absent", out))]
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        found = subprocess.run(command, env=environment | offline, capture_output=True, text=True, check=False)
        assert found.returncode == 2, found.stderr
        assert len(found.stderr.splitlines()) == 1, found.stderr
        told(found.stderr, "org/absent", "hub")
    assert left_behind(out) == []


# ---- places for the output ------------------------------------------------------------------------------------------


def output_commands(model: Path, out: Path) -> list[list[object]]:
    return [compress(model, out, "--recipe", "svd"), compress(model, out, "--recipe", "svd", "--dry-run")]


@pytest.fixture(scope="module")
def compressed(pristine: Path) -> Path:
    folder = pristine / "compressed"
    assert cli(*compress(pristine / "model", folder, "--recipe", "svd")).code == 0
    return folder


def all_output_commands(model: Path, compressed: Path, out: Path) -> list[list[object]]:
    return [*output_commands(model, out), ["densify", compressed, "-o", out]]


def test_an_output_that_is_not_empty(model: Path, compressed: Path, out: Path) -> None:
    out.mkdir()
    (out / "precious").write_text("data")
    for command in all_output_commands(model, compressed, out):
        told(refused(*command, out=out), out, "is not empty", "another output directory")
    assert tree(out) == {"precious": b"data"}


def test_an_output_that_is_a_file(model: Path, compressed: Path, out: Path) -> None:
    out.write_text("data")
    for command in all_output_commands(model, compressed, out):
        told(refused(*command, out=out), out, "is a file")
    assert out.read_text() == "data"


@pytest.mark.parametrize("target", ["absent", "empty"])
def test_an_output_that_is_a_link(model: Path, compressed: Path, out: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    out.symlink_to(tmp_path / target)
    for command in all_output_commands(model, compressed, out):
        told(refused(*command), out, "link")
    assert out.is_symlink()


def test_an_output_below_a_file(model: Path, compressed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    for command in all_output_commands(model, compressed, tmp_path / "file" / "out"):
        told(refused(*command), tmp_path / "file", "cannot be written", "choose another output")
    assert (tmp_path / "file").read_text() == "data"


@pytest.mark.parametrize("error", [(13, "Permission denied"), (30, "Read-only file system"), (28, "No space left")])
def test_an_output_where_nothing_can_be_written(
    model: Path, compressed: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: tuple[int, str]
) -> None:
    """Tests may run as root, whom no permission stops; so the system's answer is played."""

    def mkdir(*_: object, **__: object) -> None:
        raise OSError(*error)

    monkeypatch.setattr("os.mkdir", mkdir)
    for command in all_output_commands(model, compressed, out):
        told(refused(*command, out=out), out.name, "cannot be written", error[1], "choose another output")


def test_a_new_folder_is_made_with_its_parents(model: Path, tmp_path: Path) -> None:
    assert cli(*compress(model, tmp_path / "a" / "b" / "c", "--recipe", "svd")).code == 0
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c"]


def test_an_empty_folder_is_taken(model: Path, out: Path) -> None:
    out.mkdir()
    assert cli(*compress(model, out, "--recipe", "svd")).code == 0
    assert left_behind(out) == ["out"]


def test_a_work_folder_that_is_a_file(model: Path, out: Path) -> None:
    work_folder(out).write_text("data")
    for options in ((), ("--restart",)):
        told(refused(*compress(model, out, "--recipe", "svd", *options), out=out), work_folder(out))
    assert work_folder(out).read_text() == "data"


# ---- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


@pytest.mark.parametrize("recipe", ["svd", pytest.param("svd-llm", marks=pytest.mark.slow)])
def test_files_that_may_not_grow(killer: Killer, pristine: Path, text: Path, out: Path, recipe: str) -> None:
    """The system's own refusal at every size of a file: journal, activations, curves, factors, weights, tokenizer."""
    command = compress(pristine / "model", out, "--recipe", recipe, "--calibration", text, *CALIBRATED)
    sizes = [0, 100, 700, 1500, 3000, 5000, 9000, 12_000, 16_000, 20_000, 24_000]
    for size in sizes:
        outcome = killer(*command, largest_file=size)
        if outcome.code == 0:
            break
        assert outcome.code == 2, outcome.err
        told(outcome.sentence, "cannot be written", out.parent)
        assert not out.exists()
    else:
        assert killer(*command).code == 0
    assert size >= 9000
    assert left_behind(out) == ["out"]
    shutil.rmtree(out)
    first = tree(out) if killer(*command).code == 0 else {}
    assert "eckart.json" in first


def failing_at(call: int, error: Exception, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that raises at its n-th call and works otherwise."""
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*args, **kwargs)

    return called


FULL = OSError(28, "No space left on device")
DISKS: dict[str, tuple[str, int, Exception, Callable[..., Any]]] = {
    "activations": ("os.posix_fallocate", 2, FULL, getattr(os, "posix_fallocate", os.ftruncate)),
    "gradients": ("os.posix_fallocate", 4, FULL, getattr(os, "posix_fallocate", os.ftruncate)),
    "weights": ("os.fsync", 60, FULL, os.fsync),
    "rename": ("os.replace", 2, FULL, os.replace),
}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is reserved otherwise on this system")
@pytest.mark.parametrize("disk", DISKS)
def test_a_full_disk(
    model: Path, text: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    place, call, error, function = DISKS[disk]
    command = compress(model, out, "--calibration", text, *CALIBRATED)
    with monkeypatch.context() as patch:
        patch.setattr(place, failing_at(call, error, function))
        outcome = cli(*command)
    assert outcome.code == 2, outcome.err
    told(outcome.sentence, "cannot be written", "No space left on device", "free space", out.parent)
    assert not out.exists()
    assert cli(*command).code == 0
    assert cli(*compress(model, tmp_path / "undisturbed", "--calibration", text, *CALIBRATED)).code == 0
    assert tree(out) == tree(tmp_path / "undisturbed")


RESULT = ["config.json", "eckart.json", "README.md", "tokenizer.json", INDEX, SHARDS[1]]
WORK = ["curves-0001.safetensors", "factors-allocated-0001.safetensors"]


@pytest.mark.parametrize("file", [*RESULT, *WORK])
def test_a_disk_that_is_full_at_one_file(
    model: Path, text: Path, out: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    real = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == f".{file}.part":
            raise FULL
        return real(path, *args, **kwargs)

    command = compress(model, out, "--calibration", text, *CALIBRATED)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        outcome = cli(*command)
    assert outcome.code == 2, outcome.err
    told(outcome.sentence, file, "cannot be written", "No space left on device", "free space")
    assert not out.exists()
    assert list(work_folder(out).rglob("*.part")) == []
    assert cli(*command).code == 0


@pytest.mark.parametrize("call", [1, 3])
def test_a_disk_that_fills_while_a_dense_checkpoint_is_written(
    compressed: Path, out: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing_at(call, FULL, os.fsync))
        outcome = cli("densify", compressed, "-o", out)
    told(outcome.sentence, "cannot be written", "No space left on device")
    assert (outcome.code, outcome.out, out.exists()) == (2, "", False)
    assert list(work_folder(out).rglob("*.part")) == []
    assert cli("densify", compressed, "-o", out).code == 0
    assert left_behind(out) == [out.name]


def test_a_companion_that_cannot_be_read_is_not_called_a_full_disk(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def broken(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path == model / "tokenizer.json":
            raise OSError(5, "Input/output error")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", broken)
    outcome = cli(*compress(model, out, "--recipe", "svd"))
    assert outcome.code == 2
    told(outcome.sentence, model / "tokenizer.json", "cannot be read", "Input/output error")


def test_weights_that_the_disk_no_longer_gives_are_named(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, file = Path.open, file_of(model, TARGETS[0])

    def broken(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == file and kwargs.get("buffering") == 0:  # a tensor, after the header was read
            raise OSError(5, "Input/output error")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", broken)
    outcome = cli(*compress(model, out, "--recipe", "svd"))
    assert outcome.code == 2
    told(outcome.sentence, file, "cannot be read", "Input/output error")


def test_finite_numbers_are_finite_though_their_sum_is_not() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2):
        numbers = torch.full((300,), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
        assert all(map(_is_finite, _pieces(numbers))), dtype
        numbers[150] = math.nan
        assert not all(map(_is_finite, _pieces(numbers))), dtype


# ---- the same in Python ---------------------------------------------------------------------------------------------


def test_python_raises_the_sentence(model: Path, text: Path, out: Path) -> None:
    with pytest.raises(EckartError, match="above 0 and at most 1"):
        eckart.compress(model, out, keep=float("nan"))
    with pytest.raises(EckartError, match="either --keep FRACTION or --bytes SIZE"):
        eckart.compress(model, out)
    with pytest.raises(EckartError, match="there is no recipe"):
        eckart.plan(model, out, keep=0.5, recipe="nosuch")
    with pytest.raises(EckartError, match="does not exist"):
        eckart.load("absent")
    with pytest.raises(EckartError, match="is not a directory"):
        eckart.verify(out, model)
    with pytest.raises(EckartError, match=r"holds no eckart\.json"):
        eckart.verify(model.parent, model)
    (model / SHARDS[0]).unlink()
    with pytest.raises(EckartError, match="is missing"):
        eckart.load(model)
    with pytest.raises(EckartError, match="is missing"):
        eckart.evaluate(model, [text])


@pytest.mark.parametrize("call", [eckart.compress, eckart.plan])
def test_an_option_that_does_not_exist_is_not_ignored(model: Path, out: Path, call: Callable[..., object]) -> None:
    with pytest.raises((TypeError, EckartError), match="recpie"):
        call(model, out, keep=0.7, recpie="svd")
    assert left_behind(out) == []
