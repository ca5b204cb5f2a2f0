"""I4 in generation and scoring: padding, on either side, changes no generated token and no score."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.batch import Example, collate
from limbeck.decode.generate import generate
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.settings import Decoding
from limbeck.kernels.fused_head.losses import head_sequence_log_probs
from limbeck.model.patterns import Causal, Sliding
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, llama_config, random_decoder

TOKENIZER = byte_level()
FAMILIES = [gpt2_config, llama_config]
PATTERNS = [Causal(), Sliding(window=4, sinks=1)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_id_on_padding_is_never_read(family, pattern):
    model = random_decoder(family(TOKENIZER.vocab_size, pattern=pattern), 3, dtype=torch.float64)
    prompts = [[5, 6, 7, 8, 9, 10], [11], [12, 13]]
    found = []
    with evaluating(model):
        for pad in (0, 77, TOKENIZER.vocab_size - 1):
            session = DecodingSession(model, prompts, 4, pad)
            found.append([session.start(), session.step([1, 2, 3]), session.step([4, 5, 6], [True, False, True])])
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0]) and torch.equal(found[0][1], other[1])
        assert torch.equal(found[0][2][[0, 2]], other[2][[0, 2]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=12), Decoding(max_new_tokens=12, temperature=1.0),
                                      Decoding(max_new_tokens=12, beams=3)])  # fmt: skip
def test_a_longer_neighbour_changes_no_generated_token(family, pattern, decoding):
    model = random_decoder(family(TOKENIZER.vocab_size, pattern=pattern), 4, dtype=torch.float64)
    (alone,) = generate(model, TOKENIZER, [[5, 6]], decoding)
    for width in (3, 20, 50):
        beside = generate(model, TOKENIZER, [list(range(1, 1 + width)), [5, 6]], decoding)[1]
        assert [g.ids for g in beside] == [g.ids for g in alone]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [False, True])
def test_padding_on_either_side_changes_no_score(family, left):
    model = random_decoder(family(61), 5, dtype=torch.float64)
    ids = torch.randint(61, (9,), generator=torch.Generator().manual_seed(1)).numpy().astype("int32")
    example = Example(0, "x", ids, ids >= 0)

    def score(batch):
        labels = batch.next_token_labels()
        with torch.no_grad():
            return model(batch, read=lambda hidden, head: head_sequence_log_probs(hidden, head, labels))[0]

    alone = score(collate([[example]]))
    for pad, multiple in ((0, 16), (60, 32)):
        assert torch.allclose(score(collate([[example]], pad, multiple, left)), alone, atol=1e-11, rtol=0)
