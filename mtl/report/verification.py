"""The curves of face verification: ROC, and DET (Martin et al., Eurospeech 1997) on axes where normal scores give straight lines."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mtl.report.style import GREY, add_legend, pick_line, set_log_ticks

Array = NDArray[Any]
TICKS = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8)
ENDS = (0.0005, 0.9)


def draw_verification(curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    """curves: by name, the false accept and false reject rates of all thresholds, from the strictest."""
    figure = Figure(figsize=(7.4, 3.2))
    roc, det = figure.subplots(1, 2)
    looks = [pick_line(index) | {"markevery": 0.1} for index in range(len(curves))]
    for look, (far, frr) in zip(looks, curves.values(), strict=True):
        roc.plot(far, 1 - frr, **look)
        # A rate of nothing has no place on these axes; nor has a rate below what one pair makes.
        shown = (far > 0) & (far < 1) & (frr > 0) & (frr < 1)
        det.plot(_probit(far[shown]), _probit(frr[shown]), **look)
    least = min((far[far > 0].min() for far, _ in curves.values()), default=ENDS[0])
    low = min(max(least, 1e-5), 0.1)
    roc.set(
        xscale="log",
        xlim=(low, 1),
        ylim=(0, 1.01),
        xlabel="false accept rate",
        ylabel="true accept rate",
        title="ROC",
    )
    set_log_ticks(roc.xaxis, low, 1)
    roc.grid()
    _probit_axes(det)
    add_legend(figure, list(curves), looks)
    return figure


def _probit_axes(axes: Axes) -> None:
    places, names = _probit(np.array(TICKS)), [f"{100 * tick:g}" for tick in TICKS]
    low, high = _probit(np.array(ENDS))
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.6, linestyle=":")
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="false accepts, %", ylabel="false rejects, %", title="DET")
    axes.grid()


def _probit(rates: Array) -> Array:
    inverse = NormalDist().inv_cdf
    return np.array([inverse(rate) for rate in rates.tolist()])
