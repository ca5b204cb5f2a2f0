"""The names of figures, explained: what reports, tables and pages print."""

from __future__ import annotations

import re

__all__ = ["FIGURES", "explained"]

FIGURES: dict[str, str] = {
    "nats per token": "mean negative log-likelihood of a token; lower is better; for models of one tokenizer",
    "nats per word": "the same divided by the words of the text; lower is better; for any tokenizers",
    "nats per byte": "the same divided by the bytes of the text; lower is better; for any tokenizers",
    "nats per item": "mean negative log-likelihood of the right answer of an item; lower is better",
    "nats per rejected token": "nats per token of the answers that were not preferred",
    "nats at ...": "nats per token of the tokens at these places of a document; lower is better",
    "perplexity": "e to the power of nats per token; lower is better, 1 is least",
    "word perplexity": "e to the power of nats per word; lower is better",
    "byte perplexity": "e to the power of nats per byte; lower is better",
    "accuracy": "share of right answers, 0 to 1; higher is better",
    "accuracy by sum": "accuracy where whole answers are compared, not their mean token; 0 to 1",
    "accuracy, not calibrated": "accuracy without taking out what the model says to an empty text; 0 to 1",
    "calibrated accuracy": "accuracy after taking out what the model says to an empty text; 0 to 1",
    "macro F1": "plain mean over classes of F1, so that rare classes weigh as much as common ones; 0 to 1",
    "F1": "harmonic mean of precision and recall of the second class; 0 to 1, higher is better",
    "f1": "overlap of an answer's words with the reference's; 0 to 1, higher is better",
    "exact": "share of answers equal to the reference after spaces and case are evened out; 0 to 1",
    "majority rate": "accuracy of always giving the commonest class of these rows; what accuracy must beat",
    "shorter is chosen": "accuracy of always taking the shorter answer; what accuracy must beat",
    "margin per token": "mean likelihood of the preferred answer's tokens less that of the rejected one's, in nats",
    "bleu": "word runs of one to four of an answer that stand in the reference, with a penalty for short answers; "
    "0 to 100, higher is better",
    "corpus BLEU": "the same over all answers together; 0 to 100",
    "self-BLEU": "BLEU of generated texts against each other; 0 to 100, 100 means all alike",
    "chrF": "character runs of one to six shared with the reference; 0 to 100, higher is better",
    "chrF of new lines": "chrF without the lines that were given; 0 to 100",
    "distinct-...": "share of different runs of so many words among all such runs; 0 to 1, 1 is most varied",
    "ended": "share of generated answers that ended with the end token before the limit of new tokens; 0 to 1",
    "stop rate, sampled": "the same of sampled answers",
    "stop rate, greedy": "the same of greedy answers",
    "length ratio, sampled": "tokens of sampled answers by those of the references; 1 is equal",
    "length ratio, greedy": "tokens of greedy answers by those of the references; 1 is equal",
    "wrote an answer": "share of solutions that name a number as their answer; 0 to 1",
    "exact match, strict": "share of solutions whose named answer is right; 0 to 1",
    "exact match, flexible": "share of solutions whose last number is right; 0 to 1",
    "perfect sonnets": "share of poems of 14 lines with 6 of 7 rhymes of ABAB CDCD EFEF GG; 0 to 1",
    "any known scheme": "share of poems that follow some known rhyme scheme; 0 to 1",
    "fourteen lines": "share of poems of fourteen lines; 0 to 1",
    "rhymes there": "share of the rhymes of the scheme that are there; 0 to 1",
    "ten-syllable lines": "share of lines of ten syllables; 0 to 1",
    "lines of nine to eleven": "share of lines of nine to eleven syllables; 0 to 1",
    "memorised lines": "share of new lines that stand word for word in the training text; lower is better",
    "KL to the original": "Kullback-Leibler divergence of the next token's probabilities, nats a token; 0 is equal",
    "same top token": "share of places where both models find the same next token likeliest; 1 is always",
}
"""Name -> meaning; ``...`` in a name stands for what differs."""


def explained(name: str) -> str:
    """Return what the figure ``name`` means, or an empty text for one that is not known, such as a harness's."""
    if name in FIGURES:
        return FIGURES[name]
    patterns = (known for known in FIGURES if "..." in known)
    return next((FIGURES[p] for p in patterns if re.fullmatch(re.escape(p).replace(r"\.\.\.", ".+"), name)), "")
