from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import RunError
from limbeck.formats.load import save_bundle
from limbeck.measure.cost import SpeedProtocol
from limbeck.measure.footprint import footprint
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.techniques.rtn import RTN
from tests.reference.task_models import tokenizer

QUICK = SpeedProtocol(prompt_tokens=8, new_tokens=2, repeats=1, warm_up=0)


def saved(folder: Path, technique: RTN | None, read: Tokenizer) -> tuple[Path, int]:
    """A model of 20 M parameters, most of them in linear layers, and its bytes."""
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=read.vocab_size, layers=6, hidden_size=512, heads=4, context=64)
    model, deployed_specs = Decoder(config), ()
    if technique is not None:
        model, deployed_spec = technique.convert(technique.apply(model))
        deployed_specs = (deployed_spec,)
    save_bundle(model, read, folder, deployed_specs=deployed_specs)
    return folder, model.count_bytes()


@pytest.mark.slow
def test_loading_a_quantized_model_makes_no_full_precision_copy(tmp_path: Path) -> None:
    read = tokenizer()
    full, full_bytes = saved(tmp_path / "fp32", None, read)
    small, small_bytes = saved(tmp_path / "int4", RTN(bits=4), read)
    plain = footprint(full, protocol=QUICK)
    packed = footprint(small, protocol=QUICK)
    # the kernel may take back pages of files meanwhile, so that growth looks smaller by a little
    assert plain.base_bytes > 50e6 and plain.load_bytes >= 0.7 * full_bytes, "the measure sees a model that is loaded"
    assert plain.use_bytes >= 0.7 * full_bytes
    # 76 MB of weights are 11 MB of codes and scales
    assert 0.3 * small_bytes <= packed.load_bytes <= 1.5 * small_bytes, "a matrix written out even once would show"
    assert 0.7 * small_bytes <= packed.use_bytes < plain.use_bytes


@pytest.mark.slow
def test_what_fails_there_is_told_here(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="memory of .*none could not be measured in a process of its own: .*none"):
        footprint(tmp_path / "none", protocol=QUICK)
