"""Accuracy and loss by epoch, as a page with one chart each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["epoch_page"]

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def epoch_page(by_epoch: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return an HTML page that needs no network: a line an arm and seed, accuracy beside loss.

    Args:
        by_epoch: arm -> one description a seed, as ``ArmResult.describe`` gives it.
    """
    import plotly.graph_objects as charts
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=("accuracy on validation rows", "loss, nats an answer"))
    for arm, (name, runs) in enumerate(by_epoch.items()):
        for seed, run in enumerate(runs):
            epochs = [one["epoch"] for one in run["epochs"]]
            for column, field in ((1, "accuracy"), (2, "loss")):
                line = charts.Scatter(
                    x=epochs,
                    y=[one[field] for one in run["epochs"]],
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1 and seed == 0,
                    line={"color": _COLOURS[arm % len(_COLOURS)]},
                )
                figure.add_trace(line, row=1, col=column)
    figure.update_xaxes(title_text="epoch")
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page
