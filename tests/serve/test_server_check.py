"""A served model against the one that was measured: no false alarm, and faults that are found through the API."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from limbeck.data.chat import TEMPLATES
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError, RunError
from limbeck.formats.load import Bundle
from limbeck.measure.server_check import ServedModel, ServerCheck, compare_with_server
from limbeck.measure.sides import BundleSide
from limbeck.model.decoder import Decoder
from tests.reference.commands import Limbeck, refused
from tests.reference.served import in_process
from tests.reference.small_model import MODERN, decoder
from tests.reference.small_tokenizer import byte_level

ENDS = (0, 7)  # of which the first follows no prompt of the model of seed 0 that is found


def sharp(seed: int = 0, **shape: Any) -> Decoder:
    """A model that is sure of what it says, so that each end token follows some prompt."""
    torch.manual_seed(seed)
    model = decoder(**{"context": 160, "hidden_size": 32, **shape})
    with torch.no_grad():
        model.norm.weight.mul_(6)
    return model


def tokenizer(template: str = "turns", ends: tuple[int, ...] = ENDS) -> Tokenizer:
    return byte_level().with_chat_template(TEMPLATES[template]).with_ends(ends)


def seen_from(model: Decoder, served: Decoder, how: Tokenizer) -> ServerCheck:
    """The comparison of ``model`` as it was measured with what is served."""
    source = BundleSide(Bundle(model, tokenizer(), {"eos_token_id": list(ENDS)}, "measured"), "measured")
    with in_process(served, how) as (client, _):
        return compare_with_server(source, reached(client), new_tokens=8)


def reached(client: Any) -> ServedModel:
    served = ServedModel.__new__(ServedModel)
    served.url, served._key, served._client = "http://127.0.0.1:8000/v1", "", client
    served.model = served._first()
    return served


@pytest.mark.parametrize("seed", range(4))
def test_no_false_alarm(seed: int) -> None:
    model = sharp(seed, **(MODERN if seed % 2 else {}))
    check = seen_from(model, model, tokenizer())
    assert check.findings == () and check.equal
    assert check.prompts >= 8 and check.greedy_texts == check.greedy_agreed > 5
    assert check.max_difference_nats is not None and check.max_difference_nats < 1e-3


def test_what_could_not_be_tested_is_told() -> None:
    model = sharp()
    (one,) = seen_from(model, model, tokenizer()).untested
    assert one == "stop token 0 (<|endoftext|>): no prompt was found that it follows"


def kinds(check: ServerCheck) -> set[str]:
    return {finding.kind for finding in check.findings}


@pytest.mark.parametrize("template", ["bare", "spaced"])
def test_a_wrong_template_is_named(template: str) -> None:
    """Of another length, and of the same length with another word."""
    other = TEMPLATES["turns"].replace("Assistant:", "assistant.") if template == "spaced" else TEMPLATES[template]
    model = sharp()
    check = seen_from(model, model, tokenizer().with_chat_template(other).with_ends(ENDS))
    assert kinds(check) == {"template"}, check.findings


def test_a_missing_template_is_named() -> None:
    model, bare = sharp(), copy.copy(tokenizer())
    bare.chat_template = None
    (found,) = seen_from(model, model, bare).findings
    assert found.kind == "template" and "has no layout for a conversation" in found.message


def test_a_dropped_stop_token_is_named() -> None:
    model = sharp()
    check = seen_from(model, model, tokenizer(ends=(0,)))
    assert kinds(check) == {"stops"} and any("does not stop at 7" in f.message for f in check.findings)


def test_a_stop_token_too_many_is_named() -> None:
    model = sharp()
    source = BundleSide(Bundle(model, tokenizer(), {"eos_token_id": list(ENDS)}, "measured"), "measured")
    ids = source.tokenizer.encode("The quick brown fox jumps over the lazy dog.")
    with torch.no_grad():
        often = int(source.logits(torch.tensor([ids]))[0, -1].argmax())
    assert "stops" in kinds(seen_from(model, model, tokenizer(ends=(*ENDS, often))))


def test_a_begin_token_too_many_is_named() -> None:
    model, twice = sharp(), copy.copy(tokenizer())
    twice.begins_with_bos = True
    assert "begin" in kinds(seen_from(model, model, twice))


def test_another_tokenizer_is_named() -> None:
    model = sharp()
    other = Tokenizer.train(["the quick brown fox jumps over the lazy dog "] * 9, 285).with_chat_template(
        TEMPLATES["turns"]
    )
    assert "tokenizer" in kinds(seen_from(model, model, other.with_ends(ENDS)))


def test_other_weights_are_named() -> None:
    model = sharp()
    served = copy.deepcopy(model)
    with torch.no_grad():
        served.blocks[1].ffn.down.weight.mul_(1.5)
    assert "logits" in kinds(seen_from(model, served, tokenizer()))


def test_servers_that_tell_little_are_told_as_untested() -> None:
    """Neither log-probabilities nor ids nor usage, as some servers have it."""
    model = sharp()
    source = BundleSide(Bundle(model, tokenizer(), {"eos_token_id": list(ENDS)}, "measured"), "measured")
    with in_process(model, tokenizer()) as (client, _):

        def poor(request: httpx2.Request) -> httpx2.Response:
            body = json.loads(request.content or b"{}")
            if "logprobs" in body or isinstance(body.get("prompt"), list):
                return httpx2.Response(400, json={"error": {"message": "no"}})
            answer = client.request(request.method, request.url.path, json=body or None).json()
            answer.pop("usage", None)
            return httpx2.Response(200, json=answer)

        check = compare_with_server(source, reached(httpx2.Client(transport=httpx2.MockTransport(poor))), new_tokens=4)
    assert check.equal and check.max_difference_nats is None
    assert check.untested[0] == "log-probabilities: the server tells none"
    assert any("stop token 7" in one and "takes no token ids" in one for one in check.untested)


def test_servers_that_are_none() -> None:
    def server(**answer: Any) -> Any:
        return httpx2.Client(transport=httpx2.MockTransport(lambda request: httpx2.Response(**answer)))

    with pytest.raises(ConfigError, match="lists no model"):
        reached(server(status_code=200, json={"data": []}))
    with pytest.raises(RunError, match="does not answer in JSON"):
        reached(server(status_code=200, text="hello"))
    with pytest.raises(ConfigError, match="no address of a server"):
        ServedModel("ftp://x", "m")
    served = ServedModel("http://127.0.0.1:9/v1", "m")
    with pytest.raises(RunError, match="cannot be reached"):
        served.complete("x")
    served._client = server(status_code=500, json={"error": {"message": "tired"}})
    with pytest.raises(RunError, match="status 500.: tired"):
        served.complete("x")


def test_bad_input_is_one_sentence(limbeck: Limbeck, tmp_path: Path) -> None:
    refused(limbeck("verify", "m", "http://127.0.0.1:9/v1", "--cache", "int8"), "the server's own")
    refused(limbeck("verify", "m", tmp_path, "--name", "x"), "belong to a server")
