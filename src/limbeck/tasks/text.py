"""Language modelling on documents: stories, articles, verse, anything that is text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, encode_text
from limbeck.data.readers import Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.measure.perplexity import PerplexityProtocol, perplexity
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.task import Measuring, Metric, Result, Task

__all__ = ["Text"]
