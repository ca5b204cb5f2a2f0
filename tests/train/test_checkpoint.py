"""Checkpoints: what is kept, what counts as whole, and what is said of damage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import CheckpointError, ConfigError, StorageError
from limbeck.train.checkpoint import Checkpoints
from limbeck.train.optim import adamw, decayed, state_tensors
from limbeck.train.precision import TrainedWeights
from limbeck.train.settings import TrainSettings
from limbeck.train.state import State
from tests.reference.training import same, tiny, weights

SETTINGS = TrainSettings(steps=9)


class Kit:
    """A model with its optimizer, one step taken."""

    def __init__(self, frozen: bool = False) -> None:
        self.model = tiny()
        if frozen:
            self.model.embed.weight.requires_grad_(False)
        self.weights = TrainedWeights(self.model, "fp32")
        self.optimizer = adamw(self.weights.trained, decayed(self.model), SETTINGS)
        self.step()

    def step(self) -> None:
        for p in self.weights.trained.values():
            p.grad = torch.ones_like(p)
        self.optimizer.step()

    def save(self, to: Checkpoints, step: int, best: int | None = None, **changes: Any) -> Path:
        self.step()
        state = State(step=step, best_step=best, best_value=1.0, settings=SETTINGS.model_dump(mode="json"))
        return to.save(state, self.weights.state(), state_tensors(self.optimizer, self.weights.trained), **changes)

    def restore(self, source: Checkpoints) -> State | None:
        return source.restore(self.weights, self.optimizer, SETTINGS)


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    kit, checkpoints = Kit(), Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        kit.save(checkpoints, step, best=2 if step >= 2 else None)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.pointer("best") == checkpoints.path(2)
    assert checkpoints.pointer("last") == checkpoints.path(6)
    assert json.loads((tmp_path / "best.json").read_text()) == {"folder": "step-00000002", "step": 2, "value": 1.0}
    kit.save(checkpoints, 7, best=7)
    assert checkpoints.steps() == [6, 7]
    assert sorted(p.name for p in checkpoints.path(7).iterdir()) == [
        "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def test_nothing_there_is_nothing_to_restore(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none")
    assert Kit().restore(checkpoints) is None
    assert checkpoints.steps() == [] and checkpoints.pointer("best") is None


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    kit, checkpoints = Kit(), Checkpoints(tmp_path)
    kit.save(checkpoints, 4)
    saved, moments = weights(kit.model), state_tensors(kit.optimizer, kit.weights.trained)
    moments = {n: t.clone() for n, t in moments.items()}
    kit.step()
    state = kit.restore(checkpoints)
    assert state is not None and state.step == 4
    assert same(weights(kit.model), saved)
    assert same(state_tensors(kit.optimizer, kit.weights.trained), moments)


def test_frozen_weights_lie_on_the_disk_once(tmp_path: Path) -> None:
    kit, checkpoints = Kit(frozen=True), Checkpoints(tmp_path)
    first, second = kit.save(checkpoints, 1), kit.save(checkpoints, 2)
    assert (first / "frozen.safetensors").stat().st_ino == (second / "frozen.safetensors").stat().st_ino
    whole = weights(kit.model)
    shutil.rmtree(first)
    with torch.no_grad():
        kit.model.embed.weight.zero_()
    kit.restore(checkpoints)
    assert same(weights(kit.model), whole)


def test_without_links_frozen_weights_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    kit, checkpoints = Kit(frozen=True), Checkpoints(tmp_path)
    first, second = kit.save(checkpoints, 1), kit.save(checkpoints, 2)
    assert (first / "frozen.safetensors").read_bytes() == (second / "frozen.safetensors").read_bytes()


def test_further_files_travel_along_and_are_checked(tmp_path: Path) -> None:
    kit, checkpoints = Kit(), Checkpoints(tmp_path)
    folder = kit.save(checkpoints, 1, extra=lambda where: (where / "config.json").write_text("{}") and None)
    assert (folder / "config.json").read_text() == "{}"
    (folder / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"config\.json is missing"), pytest.raises(CheckpointError):
        kit.restore(checkpoints)


def test_a_failing_extra_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    kit, checkpoints = Kit(), Checkpoints(tmp_path)
    with pytest.raises(StorageError, match="step-00000001: the disk is full"):
        kit.save(checkpoints, 1, extra=fail)
    assert not list(tmp_path.iterdir())


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        os.truncate(folder / name, (folder / name).stat().st_size // 2)

    return damage


def replace(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        assert old in data and len(old) == len(new)
        (folder / name).write_bytes(data.replace(old, new))

    return damage


DAMAGES = [
    (cut("model.safetensors"), r"model\.safetensors holds \d+ bytes instead of \d+"),
    (cut("optimizer.safetensors"), r"optimizer\.safetensors holds"),
    (cut("state.json"), r"state\.json is damaged"),
    (lambda folder: (folder / "state.json").unlink(), r"state\.json is damaged"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    (lambda folder: (folder / "state.json").write_text('{"state": {}}'), r"state\.json lacks key 'sizes_bytes'"),
    (replace("model.safetensors", b'"norm.bias"', b'"norm.bios"'), r"model\.safetensors is damaged: its content"),
    (replace("model.safetensors", b"data_offsets", b"data_offgets"), r"model\.safetensors is damaged"),
    (replace("optimizer.safetensors", b"exp_avg/norm", b"exp_arg/norm"), r"optimizer\.safetensors is damaged: its"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_one_gives_way_to_the_one_before(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    kit, checkpoints = Kit(), Checkpoints(tmp_path)
    kit.save(checkpoints, 1)
    saved = weights(kit.model)
    damage(kit.save(checkpoints, 2, best=2))
    with pytest.warns(UserWarning, match=words):
        state = kit.restore(checkpoints)
    assert state is not None and state.step == 1
    assert same(weights(kit.model), saved)
    checkpoints.adopt(state)
    assert checkpoints.steps() == [1]
    assert checkpoints.pointer("last") == checkpoints.path(1) and checkpoints.pointer("best") is None


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_where_none_is_whole_it_is_an_error(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    kit, checkpoints = Kit(), Checkpoints(tmp_path)
    damage(kit.save(checkpoints, 1))
    with pytest.warns(UserWarning, match="going on from"), pytest.raises(CheckpointError, match=words) as caught:
        kit.restore(checkpoints)
    assert "no checkpoint in" in str(caught.value) and "start afresh" in str(caught.value)


def test_another_model_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    Kit().save(checkpoints, 1)
    held = TrainedWeights(tiny(hidden_size=32), "fp32")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: key 'embed\.weight' has shape 50x16, .* 50x32"):
        checkpoints.load_weights(1, held)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    kit, checkpoints = Kit(), Checkpoints(tmp_path)
    kit.save(checkpoints, 1)
    with pytest.raises(ConfigError, match="made with learning_rate 0.0003, not 0.1"):
        checkpoints.restore(kit.weights, kit.optimizer, TrainSettings(steps=9, learning_rate=0.1))


@pytest.mark.parametrize("text", ["{", '{"step": 1}', "[]"])
def test_a_damaged_pointer_points_nowhere(text: str, tmp_path: Path) -> None:
    (tmp_path / "last.json").write_text(text)
    assert Checkpoints(tmp_path).pointer("last") is None
