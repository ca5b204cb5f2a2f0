"""Few-shot SST-2: what is shown, and both accuracies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limbeck.data.rows import Row, Rows
from limbeck.data.toy.table import toy_rows
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.measure.choice import calibrate, choose, score_choices
from limbeck.tasks.shots import draw_shots
from limbeck.tasks.sst2 import SST2
from limbeck.tasks.task import Measuring, Result
from tests.reference.task_models import class_rows, small, tokenizer

ROWS = toy_rows("sentiment", size=8)


def _evaluate(task: SST2, context: int = 128) -> Result:
    model = small(context=context).double()
    return task.evaluate(model, tokenizer(), ROWS, Measuring(batch_size=3), Decoding())


def test_zero_shots_and_their_calibration_against_the_scores_themselves() -> None:
    result = _evaluate(SST2())
    model, tok = small().double(), tokenizer()
    texts = [f"Review: {r.fields['sentence']}\nSentiment:" for r in ROWS]
    free = [f"Review: {t}\nSentiment:" for t in ("N/A", "[MASK]", "")]
    answers = [tok.encode(" negative"), tok.encode(" positive")]
    plain = score_choices(model, [tok.encode(t) for t in texts], answers).log_probs
    empty = score_choices(model, [tok.encode(t) for t in free], answers).log_probs
    truth = np.array([r.fields["label"] for r in ROWS])
    assert result.scores["correct"].tolist() == (choose(plain) == truth).tolist()
    assert result.scores["other_correct"].tolist() == (choose(calibrate(plain, empty)) == truth).tolist()
    swapped = _evaluate(SST2(calibrated=True))
    assert swapped.scores["correct"].tolist() == result.scores["other_correct"].tolist()
    assert swapped.scores["other_correct"].tolist() == result.scores["correct"].tolist()
    names = [s.name for s in SST2().statistics(result.scores.columns)]
    assert names[:4] == ["accuracy", "calibrated accuracy", "macro F1", "majority rate"]


@pytest.mark.parametrize("shots", [1, 4])
def test_examples_stand_before_the_sentence(shots: int) -> None:
    result = _evaluate(SST2(shots=shots, examples="toy:sentiment"), context=512)
    prompt = result.samples[0][0]
    assert prompt.count("Review: ") == shots + 1 and prompt.endswith(f"{ROWS[0].fields['sentence']}\nSentiment:")
    assert prompt.count(" positive\n\n") + prompt.count(" negative\n\n") == shots
    if shots == 4:
        assert prompt.count(" positive\n\n") == 2
    assert result.protocol["shots"] == shots
    assert _evaluate(SST2(shots=shots, examples="toy:sentiment", shot_seed=1), context=512).samples != result.samples


def test_shots_need_a_source_and_long_prompts_are_counted() -> None:
    with pytest.raises(ConfigError, match="no rows to draw them from are named: set 'examples'"):
        _evaluate(SST2(shots=2))
    assert _evaluate(SST2(shots=8, examples="toy:sentiment"), context=48).notes["truncated"] == 8


def test_braces_in_examples_are_text(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("sentence,label\na {b} c,1\nd {sentence} e,0\n")
    prompt = _evaluate(SST2(shots=2, examples=str(tmp_path / "e.csv"))).samples[0][0]
    assert "a {b} c" in prompt and "d {sentence} e" in prompt


def test_no_measured_row_is_shown() -> None:
    pool, measured = class_rows(list(range(6))), class_rows(list(range(4)))
    for seed in range(5):
        drawn = draw_shots(pool, measured, 2, seed, by="sentence")
        assert {r.id for r in drawn} == {"r4", "r5"}
    shouted = Rows.of([Row("x", {"sentence": "THE  PLOT was good 5"})], "made")
    assert {r.id for r in draw_shots(pool, shouted, 5, 0, by="sentence")} == {f"r{i}" for i in range(5)}
    with pytest.raises(DataError, match="has 2 rows that are not measured, and 3 are to be shown"):
        draw_shots(pool, measured, 3, 0, by="sentence")


def test_classes_are_shown_in_turn_as_long_as_they_last() -> None:
    pool, measured, groups = class_rows(list(range(9))), class_rows([0], words="else"), [0] * 8 + [1]
    for seed in range(4):
        drawn = {r.id for r in draw_shots(pool, measured, 4, seed, by="sentence", groups=groups)}
        assert "r8" in drawn and len(drawn) == 4


def test_fine_tuning_learns_the_word_alone() -> None:
    examples, _ = SST2().encode(ROWS, tokenizer(), 128)
    words = [tokenizer().encode(w)[0] for w in (" negative", " positive")]
    for row, example in zip(ROWS, examples, strict=True):
        assert example.predictions == 1 and example.ids[-1] == words[row.fields["label"]]


@pytest.mark.realdata
def test_the_real_file_is_read(real_data: Path) -> None:
    rows = SST2().read(str(real_data / "sst2" / "alps_test.tsv"), columns={}, limit=None, separator="")
    assert len(rows) == 872 and rows[0].fields["sentence"] == "it 's a charming and often affecting journey ."
