import random
from pathlib import Path

import pytest
import torch
from stories import BOS, NAMES, Pieces, convert, pieces, stories
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

pytestmark = pytest.mark.data

ODD = (
    "",
    " ",
    "   two  and   three ",
    "\n",
    "line one\n\nline two\r\n\tindented",
    "a\x01b\x7f",
    "naïve café, señor — “quoted” ‘once’ … €5 ™",
    "漢字 и кириллица, עברית",
    "👩‍👩‍👧 🎉",
    "e\u0301 and \u00e9",
    "<s> </s> <unk> <0x0A> \n<s>\n",
    "oooooooo llllll eeee ttthehehe",
    "Lily" * 50,
)


@pytest.fixture(scope="module")
def checkpoint(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(data_dir, tmp_path_factory.mktemp("stories260k"))


@pytest.fixture(scope="module")
def reference(data_dir: Path) -> Pieces:
    return pieces(data_dir)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def texts(data_dir: Path) -> list[str]:
    return stories(data_dir)


def test_cuts_120_stories(texts: list[str]) -> None:
    assert len(texts) == 120
    assert min(map(len, texts)) > 300


def test_tokenizer_matches_reference_on_stories(
    tokenizer: PreTrainedTokenizerBase, reference: Pieces, texts: list[str]
) -> None:
    encoded = tokenizer(texts)["input_ids"]
    assert encoded == [reference.encode(text) for text in texts]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded] == texts


@pytest.mark.parametrize("text", ODD)
def test_tokenizer_matches_reference_on_odd_text(
    tokenizer: PreTrainedTokenizerBase, reference: Pieces, text: str
) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_matches_reference_on_random_text(tokenizer: PreTrainedTokenizerBase, reference: Pieces) -> None:
    draw = random.Random(0)
    parts = [*reference.ids, *"ehtal \n<é語", "🙂", *NAMES]
    for _ in range(500):
        text = "".join(draw.choices(parts, k=draw.randrange(1, 40)))
        ids = tokenizer(text)["input_ids"]
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_bos_can_be_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.bos_token_id == BOS
    with_bos = tokenizer("Once upon a time")["input_ids"]
    assert tokenizer("Once upon a time", add_special_tokens=False)["input_ids"] == with_bos[1:]
    assert tokenizer.convert_ids_to_tokens(with_bos) == ["<s>", " Once", " upon", " a", " time"]


def test_perplexity_is_the_published_one(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")["input_ids"][0]
            logits = model(ids[None]).logits[0, :-1]
            total += F.cross_entropy(logits, ids[1:], reduction="sum").item()
            count += len(ids) - 1
    assert count == 34_279
    assert total / count == pytest.approx(1.3104, abs=1e-4)
    assert torch.tensor(total / count).exp().item() == pytest.approx(3.708, abs=0.002)


def test_greedy_story_is_english(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    prompt = torch.tensor([[BOS]])
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("Once upon a time, there was a little girl named")
