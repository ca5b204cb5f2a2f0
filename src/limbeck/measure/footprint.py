"""Peak memory of a model, at load and in use, measured in a process that holds nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from limbeck.errors import LimbeckError, RunError
from limbeck.formats.load import load_bundle
from limbeck.formats.native import read_model, write_model
from limbeck.formats.weights import read_json
from limbeck.measure.cost import SpeedProtocol, peak_memory, speed
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.presets import PRESETS
from limbeck.techniques.rtn import RTN

__all__ = ["Footprint", "footprint", "main"]

_SMALL = SpeedProtocol(repeats=1, warm_up=0)
_ROUNDING = RTN(bits=4)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident memory of one process.

    Attributes:
        base_bytes: with the program loaded and no model.
        load_bytes: most held above that while the model was loaded.
        use_bytes: most held above it while a prompt was prefilled and tokens were decoded, the model included.
    """

    base_bytes: int
    load_bytes: int
    use_bytes: int


def footprint(
    model: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    adapter: str | Path | None = None,
    keep_codes: bool = False,
    protocol: SpeedProtocol = _SMALL,
) -> Footprint:
    """Load ``model`` and generate with it in a fresh process on the CPU, as many threads as here.

    The process first loads and runs a tiny model of its own making, so that what torch imports and keeps for itself
    does not count. What other models left in this process's allocator, which would hide a peak, does not either.

    Args:
        model: a folder, a run, a .gguf file or a Hub id.
        dtype: as for ``load_bundle``.
        adapter: a PEFT adapter beside it.
        keep_codes: as for ``load_bundle``.
        protocol: what is generated; shortened to the model's context.

    Raises:
        RunError: the process failed; its last line is told.
    """
    asked = {
        "model": str(model),
        "dtype": str(dtype).removeprefix("torch."),
        "adapter": None if adapter is None else str(adapter),
        "keep_codes": keep_codes,
        "threads": torch.get_num_threads(),
        "protocol": protocol.model_dump(mode="json"),
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(asked)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(f"the memory of {model} could not be measured in a process of its own: {last}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def main(asked: str) -> Footprint:
    """Do what the fresh process does: load, run, print its memory.

    Args:
        asked: the arguments of ``footprint`` as JSON.
    """
    given = json.loads(asked)
    torch.set_num_threads(given["threads"])
    protocol = SpeedProtocol.model_validate(given["protocol"])
    _warm_up(protocol)
    with peak_memory() as loading:
        dtype = getattr(torch, given["dtype"])
        bundle = load_bundle(given["model"], dtype, adapter=given["adapter"], keep_codes=given["keep_codes"])
    with peak_memory() as using:
        speed(bundle.model, protocol)
    base = loading.before_bytes
    return Footprint(base, loading.grown_bytes, max(0, using.peak_bytes - base))


def _warm_up(protocol: SpeedProtocol) -> None:
    """Save, load and run a tiny quantized model: torch imports 70 MB of its own at the first load, and keeps more."""
    model, deployed_spec = _ROUNDING.convert(
        _ROUNDING.apply(Decoder(DecoderConfig(vocab_size=64, **PRESETS["toy-gpt2"])))
    )
    assert deployed_spec is not None  # rounding leaves its grids
    with TemporaryDirectory() as folder:
        write_model(model, Path(folder), {}, (deployed_spec,))
        again, _ = read_model(Path(folder), read_json(Path(folder) / "config.json"))
    speed(again, protocol)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(main(sys.argv[1]))))
    except LimbeckError as error:
        sys.exit(str(error))
