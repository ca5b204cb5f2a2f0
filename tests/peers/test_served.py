"""The server's clients that others wrote, unchanged: OpenAI's and lm-evaluation-harness's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limbeck.data.chat import TEMPLATES
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.measure.continuation import score_continuations
from tests.reference.served import command
from tests.reference.small_model import decoder
from tests.reference.small_tokenizer import byte_level

pytestmark = pytest.mark.peers

CHOICES = [" red", " blue", " a hen", " ten"]
QUESTIONS = ["The sky is", "She counts to", "In the yard walks", "The apple is", "It was"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("served") / "hen"
    save_bundle(decoder(context=512, hidden_size=32), byte_level().with_chat_template(TEMPLATES["turns"]), folder)
    return folder


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with command(model) as (url, _):
        yield url


def test_openais_client(address: str, model: Path) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    bundle = load_bundle(str(model))
    ((wanted,),) = generate(bundle.model, bundle.tokenizer, [bundle.tokenizer.encode("x")], Decoding(max_new_tokens=9))
    whole = client.completions.create(model="hen", prompt="x", max_tokens=9, temperature=0, logprobs=2)
    assert whole.choices[0].text == wanted.text and len(whole.choices[0].logprobs.tokens) == len(wanted.ids)
    assert [m.id for m in client.models.list()] == ["hen"] and client.models.retrieve("hen").id == "hen"
    turns = [{"role": "user", "content": "Who?"}]
    options = {"model": "hen", "messages": turns, "seed": 3, "max_tokens": 9}
    told = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    assert len(told.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert said == told.choices[0].message.content and stream[-1].usage == told.usage
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="none", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="hen", prompt=[5] * 600)
    assert long.value.code == "context_length_exceeded"


def test_lm_evaluation_harness(address: str, model: Path, tmp_path: Path) -> None:
    """Multiple choice by log-probabilities, and generation, with figures that our own scores give."""
    pytest.importorskip("lm_eval")
    rows = [{"question": q, "choices": CHOICES, "gold": i % len(CHOICES)} for i, q in enumerate(QUESTIONS)]
    data = tmp_path / "toy.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    (tmp_path / "choice.yaml").write_text(
        f"task: toy_choice\n{common}output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"\ntarget_delimiter: ""\n'
        "metric_list:\n  - metric: acc\n"
    )
    (tmp_path / "written.yaml").write_text(
        f"task: toy_written\n{common}output_type: generate_until\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: " red"\n'
        'generation_kwargs:\n  until: ["zzzz"]\n  do_sample: false\n  max_gen_toks: 6\n'
        "metric_list:\n  - metric: exact_match\n"
    )
    args = f"base_url={address}/completions,model=hen,tokenizer={model},num_concurrent=4,max_retries=1,max_length=500"
    argv = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", args,
        "--tasks", "toy_choice,toy_written", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
        "--log_samples",
    ]  # fmt: skip
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONWARNINGS": ""}
    done = subprocess.run(argv, capture_output=True, text=True, env=offline, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]

    bundle = load_bundle(str(model))
    t = bundle.tokenizer
    right = 0
    for row in rows:
        pairs = [(t.encode(str(row["question"])), t.encode(c)) for c in CHOICES]
        scores = score_continuations(bundle.model, pairs, pad_id=t.pad_id).log_probs
        right += int(scores.argmax()) == row["gold"]
    assert found["toy_choice"]["acc,none"] == pytest.approx(right / len(rows))
    (samples,) = (tmp_path / "out").rglob("samples_toy_written_*.jsonl")
    written = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    wanted = generate(bundle.model, t, [t.encode(q) for q in QUESTIONS], Decoding(max_new_tokens=6))
    assert written == [g.text for (g,) in wanted]
