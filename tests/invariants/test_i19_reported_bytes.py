"""I19: the size that is reported is the size of the files, and no paper figure."""

from __future__ import annotations

import pytest
import torch

from limbeck.formats.load import load_bundle, save_bundle
from limbeck.measure.cost import SpeedProtocol, cost
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, llama_config, random_decoder


@pytest.mark.parametrize("family", [gpt2_config, llama_config])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_reported_bytes_are_those_of_the_files(tmp_path, family, dtype, shard_bytes):
    tokenizer = byte_level()
    model = random_decoder(family(tokenizer.vocab_size), dtype=dtype)
    save_bundle(model, tokenizer, tmp_path / "model", shard_bytes=shard_bytes)
    folder = tmp_path / "model"
    found = cost(load_bundle(str(folder), dtype).model, folder, protocol=SpeedProtocol(new_tokens=2, repeats=1))
    shards = list(folder.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard_bytes == 20_000)
    assert found.disk_bytes == sum(f.stat().st_size for f in shards)
    assert found.folder_bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) > found.disk_bytes
    # Embedding and head are in it: no less than every parameter at its width, and little more (names, shapes).
    assert found.parameters * dtype.itemsize <= found.disk_bytes < 1.5 * found.parameters * dtype.itemsize + 8192
