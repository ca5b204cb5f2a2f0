from __future__ import annotations

from typing import Any

from limbeck.measure.spikes import kept_start, spikes


def log(losses: list[float], norms: list[float]) -> list[dict[str, Any]]:
    pairs = zip(losses, norms, strict=True)
    return [{"step": i, "train/loss_max": a, "grad_norm_max": b} for i, (a, b) in enumerate(pairs)]


def test_a_smooth_training_is_silent() -> None:
    found = spikes(log([5 - 0.1 * i for i in range(30)], [1.0] * 30))
    assert [a.name for a in found] == ["loss-spike", "gradient-spike"] and not any(a.fired for a in found)


def test_a_spike_fires_and_names_its_step() -> None:
    losses, norms = [3.0] * 30, [1.0] * 30
    losses[17], norms[21] = 6.0, 40.0
    loss, norm = spikes([{"step": 0, "valid/nll": 9.0}, *log(losses, norms)])
    assert loss.fired and loss.value == 3.0 and "step 17" in loss.sentence
    assert norm.fired and norm.value == 40.0 and "step 21" in norm.sentence


def test_the_steep_start_and_short_logs_say_nothing() -> None:
    assert spikes(log([9.0, 3.0, 3.0], [50.0, 1.0, 1.0])) == []
    assert spikes([]) == []


def test_a_training_whose_start_was_its_best_rings() -> None:
    (rang,), (silent,), (none,) = kept_start(0, 52), kept_start(50, 52), kept_start(0, 0)
    assert rang.fired and "step 0 of 52; no evaluation was better" in rang.sentence
    assert not silent.fired and not none.fired and silent.value == 50
