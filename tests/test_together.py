"""Two processes that torchrun starts do what one does: losses at every step and the adapter, up to rounding; they go on after kills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, SENTENCES, tokenizer
from runs import tree
from safetensors.torch import load_file
from together import run
from transformers import BertConfig, BertForSequenceClassification

from eckart.adapt import Course
from eckart.errors import EckartError
from eckart.model.adapting.processes import Processes
from eckart.model.adapting.records import MASKED, share

HERE = Path(__file__).parent
# Two of 23 examples are held out: the last batch of an epoch has one example, so that a process has none.
COURSE = {"steps": 7, "batch": 4, "judge": 1, "save": 3, "rate": 1e-2, "held_out": 0.1}
EXAMPLES = 23


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Completions of very different lengths: a mean of means would be another number."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    sentences = (SENTENCES * 4)[:EXAMPLES]
    cuts = [len(s) // 2 if i % 2 else len(s) - 3 for i, s in enumerate(sentences)]
    records = [{"prompt": s[:cut], "completion": s[cut:]} for s, cut in zip(sentences, cuts, strict=True)]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("classifier")
    config = BertConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder / "bert")
    tokenizer().save_pretrained(folder / "bert")
    lines = [{"text": f"{('no', 'yes', 'so')[i % 3]} {SENTENCES[i % 5]}", "label": i % 3} for i in range(EXAMPLES)]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "bert", folder / "data.jsonl"


def torchrun(*command: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine; a store of their own on a free port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*launcher, *map(str, command)],
        env=variables | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def compared(jobs: list[dict[str, Any]], folder: Path) -> None:
    """The jobs in one process and in two."""
    one = [json.loads(json.dumps(run({**job, "out": str(folder / f"one{i}")}))) for i, job in enumerate(jobs)]
    told = [{**job, "out": str(folder / f"two{i}")} for i, job in enumerate(jobs)]
    (folder / "jobs.json").write_text(json.dumps(told))
    outcome = torchrun(HERE / "together.py", folder / "jobs.json")
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    two = json.loads((folder / "jobs.results").read_text())
    for i, job in enumerate(jobs):
        assert one[i]["judged"].keys() == two[i]["judged"].keys() == {str(step) for step in range(1, 8)}
        for name in ("judged", "trained", "accuracy"):
            assert two[i][name] == pytest.approx(one[i][name], rel=2e-5), (job, name)
        alone, beside = (load_file(folder / f"{count}{i}" / "adapter_model.safetensors") for count in ("one", "two"))
        assert alone.keys() == beside.keys()
        for name, tensor in alone.items():
            assert (tensor - beside[name]).norm() <= 1e-3 * tensor.norm(), (job, name)


def test_two_processes_train_as_one(model: Path, data: Path, tmp_path: Path) -> None:
    """A penalty on tensors, one on outputs that is no mean over examples, and shares of batches that may be empty."""
    job = {"model": str(model), "data": str(data), "recipe": "kasa", "outputs": True, "course": COURSE}
    compared([job], tmp_path)


@pytest.mark.slow
def test_two_processes_train_as_one_whatever_the_recipe(
    model: Path, data: Path, classifier: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = {"model": str(model), "data": str(data), "course": COURSE}
    parts = {**plain, "course": {**COURSE, "accumulate": 2}}
    labelled = {"model": str(classifier[0]), "data": str(classifier[1]), "labels": 3, "course": COURSE}
    jobs = [{**plain, "recipe": recipe} for recipe in ("lora", "sorsa", "lora-pro", "adalora", "eva")]
    jobs += [{**parts, "recipe": "pissa", "outputs": True}, {**labelled, "recipe": "lora"}]
    jobs += [{**labelled, "recipe": "pissa", "course": {**COURSE, "accumulate": 2}}]
    compared(jobs, tmp_path)


@pytest.mark.slow
def test_two_processes_go_on_after_a_kill(model: Path, data: Path, tmp_path: Path) -> None:
    """The first process is killed after its second checkpoint; both end, and the same command ends in the same bytes."""
    (tmp_path / "killed.py").write_text(
        "import os, signal, eckart.model.adapting.trainer as trainer\n"
        "from eckart.cli import main\n"
        "save = trainer.AdapterTrainer._save_checkpoint\n"
        "def saved(self, *args):\n"
        "    save(self, *args)\n"
        "    if self.state.global_step == 6 and os.environ['RANK'] == os.environ['KILLED']:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer.AdapterTrainer._save_checkpoint = saved\n"
        "main()\n"
    )
    options = ["--steps", "8", "--batch", "4", "--save", "3", "--judge", "2", "--rate", "1e-2", "--rank", "4", "--json"]
    command = ["adapt", model, "--data", data, "-o", tmp_path / "out", "--recipe", "adalora", *options]
    outcome = torchrun("-m", "eckart", *command)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    told, wanted = json.loads(outcome.stdout), tree(tmp_path / "out")  # one document: one process speaks
    shutil.rmtree(tmp_path / "out")
    for killed in "01":
        outcome = torchrun(tmp_path / "killed.py", *command, environment={"KILLED": killed})
        assert outcome.returncode != 0
        assert not (tmp_path / "out").exists()
        outcome = torchrun("-m", "eckart", *command)
        assert outcome.returncode == 0, outcome.stderr[-3000:]
        assert json.loads(outcome.stdout) == told
        assert tree(tmp_path / "out") == wanted
        shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
def test_processes_refuse_together(model: Path, data: Path, tmp_path: Path) -> None:
    outcome = torchrun("-m", "eckart", "adapt", model, "--data", data, "-o", tmp_path / "out", "--batch", "5")
    assert outcome.returncode != 0
    assert "5 examples a step can't be shared by 2 processes: make --batch a multiple of 2" in outcome.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    outcome = torchrun("-m", "eckart", "adapt", model, "--data", data, "-o", tmp_path / "full")
    assert outcome.returncode != 0
    assert "is not empty" in outcome.stderr


def test_a_batch_is_shared_by_its_parts() -> None:
    Course(batch=8, accumulate=2).check_divides(4)
    with pytest.raises(
        EckartError, match=r"8 examples a step in 2 parts can't be shared by 3 processes: .* multiple of 6"
    ):
        Course(batch=8, accumulate=2).check_divides(3)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_the_whole(count: int) -> None:
    """Every example is in one share, and what fills an empty share up counts nothing."""
    batch = {"input_ids": torch.arange(8).reshape(4, 2), "labels": torch.arange(8).reshape(4, 2)}
    parts = [share(batch, index, count) for index in range(count)]
    counting = torch.cat([part["labels"][part["labels"] != MASKED] for part in parts])
    assert sorted(counting.tolist()) == list(range(8))
    assert all(len(part["input_ids"]) == len(part["labels"]) >= 1 for part in parts)
    assert sorted(x for index in range(count) for x in Processes(index, count).share([0, 1, 2, 3])) == [0, 1, 2, 3]


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "eckart", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "eckart")
