"""Sonnets: chrF as sacrebleu's, verse and copied lines, and the course's predictions file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sacrebleu.metrics import CHRF as SacreChrf

from limbeck.data.rows import Rows
from limbeck.data.toy.table import toy_rows
from limbeck.errors import DataError
from limbeck.measure.overlap import CHRF
from limbeck.measure.scores import Scores
from limbeck.tasks.sonnets import Sonnets
from limbeck.tasks.task import Measuring, Result
from tests.reference.task_models import small, tokenizer

POEMS = toy_rows("verse", size=3)
COURSE = (
    "Sonnets\nby W. S.\n\n\n132\n\nOne line,\nand two,\n  and three,\nfour.\n\n133\n\nFive,\nsix,\nseven,\neight.\n"
)


def _evaluate(task: Sonnets, rows: Rows) -> Result:
    decoding = task.decoding().model_copy(update={"max_new_tokens": 12})
    return task.evaluate(small(context=256), tokenizer(), rows, Measuring(batch_size=2), decoding)


def _read(path: Path, text: str) -> Rows:
    path.write_text(text)
    return Sonnets().read(str(path), columns={}, limit=None, separator="<|endoftext|>")


def test_an_evaluation_has_chrf_verse_variety_and_copies() -> None:
    task = Sonnets(training="toy:verse")
    result = _evaluate(task, POEMS)
    texts, truth = list(result.predictions.values()), [str(r.fields["text"]) for r in POEMS]
    figures = {s.name: s.value(result.scores) for s in task.statistics(result.scores.columns)}
    assert figures["chrF"] == pytest.approx(SacreChrf().corpus_score(texts, [truth]).score, abs=1e-9)
    new = [t.split("\n", 3)[3] for t in texts]
    rest = [t.split("\n", 3)[3] for t in truth]
    assert figures["chrF of new lines"] == pytest.approx(SacreChrf().corpus_score(new, [rest]).score, abs=1e-9)
    assert figures["chrF of new lines"] < figures["chrF"]
    assert {
        "perfect sonnets",
        "ten-syllable lines",
        "distinct-1",
        "distinct-2",
        "distinct-3",
        "self-BLEU",
        "memorised lines",
    } <= set(figures)
    assert all(text.startswith("\n".join(t.split("\n")[:3])) for text, t in zip(texts, truth, strict=True))
    assert 0 < result.notes["distinct_of_all"] <= 1


def test_a_copied_poem_is_told_and_given_lines_are_not_counted() -> None:
    task = Sonnets(training="toy:verse")
    whole = {row.id: str(row.fields["text"]) for row in POEMS}
    scores = Scores.of(list(whole), **task.judge(whole, POEMS))
    assert CHRF.value(scores) == pytest.approx(100)
    assert scores["memorised"].tolist() == scores["new_lines"].tolist() == [11.0] * 3
    assert scores["fourteen"].all()


def test_prompts_without_truth_have_no_chrf(tmp_path: Path) -> None:
    rows = _read(tmp_path / "held.txt", "Sonnets\n\n1\n\na b c\nd e f\ng h i\n\n2\n\nj\nk\nl\n")
    result = _evaluate(Sonnets(), rows)
    assert "chrf" not in result.scores.columns and "perfect" in result.scores.columns


def test_the_course_file_and_back(tmp_path: Path) -> None:
    rows = _read(tmp_path / "dev.txt", COURSE)
    assert [r.id for r in rows] == ["sonnet:132", "sonnet:133"]
    assert rows[0].fields["text"] == "One line,\nand two,\nand three,\nfour."
    result, file = _evaluate(Sonnets(), rows), tmp_path / "out.txt"
    Sonnets().write_predictions(result, file)
    assert file.read_text().startswith("--Generated Sonnets-- \n\n\n132\nOne line,")
    # the course's own reader
    cut = [s.strip() for s in re.split(r"\n\s*\d+\s*\n", file.read_text())[1:]]
    assert cut == [text.strip() for text in result.predictions.values()]
    assert list(Sonnets().read_predictions(file, rows).values()) == cut


@pytest.mark.parametrize("first", [0, 1])
def test_poems_that_the_course_numbered_anew_are_read(first: int, tmp_path: Path) -> None:
    rows = _read(tmp_path / "dev.txt", COURSE)
    parts = [f"\n{first + i}\n{r.fields['text']}\nmore\n\n" for i, r in enumerate(rows)]
    (tmp_path / "p.txt").write_text("--Generated Sonnets-- \n\n" + "".join(parts))
    found = Sonnets().read_predictions(tmp_path / "p.txt", rows)
    assert found["sonnet:133"].endswith("eight.\nmore")


def test_a_file_of_another_split_is_an_error(tmp_path: Path) -> None:
    rows, other = _read(tmp_path / "dev.txt", COURSE), tmp_path / "p.txt"
    other.write_text("--Generated Sonnets-- \n\n\n145\nThose lips\n\n\n146\nPoor soul\n\n")
    with pytest.raises(DataError, match="is of another split: its poems are 145 to 146, 2 in all, not those 2"):
        Sonnets().read_predictions(other, rows)
    other.write_text("--Generated Sonnets-- \n\n\n0\nThose lips\nthat\nLove\n\n\n1\nPoor\nsoul\nthe\n\n")
    with pytest.raises(DataError, match="poem 0 of .* does not begin with the given lines of sonnet:132"):
        Sonnets().read_predictions(other, rows)
    other.write_text("nothing here")
    with pytest.raises(DataError, match="holds no numbered poem"):
        Sonnets().read_predictions(other, rows)


@pytest.mark.realdata
def test_the_real_files_are_read(real_data: Path) -> None:
    folder, task = real_data / "cs224n", Sonnets()
    counts = {}
    for name in ("sonnets", "sonnets_held_out_dev", "TRUE_sonnets_held_out_dev", "sonnets_held_out"):
        rows = task.read(str(folder / f"{name}.txt"), columns={}, limit=None, separator="")
        counts[name] = (len(rows), rows[0].id, rows[-1].id)
    assert counts == {
        "sonnets": (131, "sonnet:1", "sonnet:131"),
        "sonnets_held_out_dev": (12, "sonnet:132", "sonnet:143"),
        "TRUE_sonnets_held_out_dev": (12, "sonnet:132", "sonnet:143"),
        "sonnets_held_out": (12, "sonnet:145", "sonnet:156"),
    }


def test_a_file_that_is_no_utf8_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "poems.txt"
    file.write_bytes("1\n\nAh, caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="poems.txt"):
        Sonnets().read(str(file), columns={}, limit=None, separator="")
