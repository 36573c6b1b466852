"""The curves of face verification: ROC, and DET (Martin et al., Eurospeech 1997) on axes where normal scores give straight lines."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mtl.report.run_files import Verified
from mtl.report.style import GREY, add_legend, pick_line, set_log_ticks
from mtl.report.tables import UNKNOWN

Array = NDArray[Any]
TICKS = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8)
ENDS = (0.0005, 0.9)
TAR = "tar@far="


def draw_verification(curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Draw the ROC and the DET curves.

    Args:
        curves: by name, the false accept and the false reject rates [V] of all thresholds, the strictest first.
    """
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


def verification_rows(runs: Sequence[tuple[Any, Verified]]) -> tuple[list[str], list[list[str]]]:
    """Make the table of what `mtl verify` wrote, a row for each run and score.

    Args:
        runs: seed of each run, and what was written there.

    Returns:
        The header and the rows.
    """
    rates = [rate for _, verified in runs for rate in verified.rates.values()]
    fars = sorted({float(key.removeprefix(TAR)) for rate in rates for key in rate if key.startswith(TAR)}, reverse=True)
    header = ["Score", "Accuracy %", "EER %", "AUC", *(f"TAR % at FAR {far:g}" for far in fars)]
    rows = []
    for seed, verified in runs:
        for name, rate in verified.rates.items():
            accuracy, error = rate.get("accuracy"), rate.get("accuracy_standard_error")
            spread = "" if accuracy is None or error is None else f" ± {100 * error:.2f}"
            cells = [f"{_write(accuracy, 100, 2)}{spread}", _write(rate.get("eer"), 100, 2), _write(rate.get("auc"), 1, 4)]
            cells += [_write(rate.get(f"{TAR}{far:g}"), 100, 1) for far in fars]
            rows.append([name if len(runs) == 1 else f"{name}, seed {seed}", *cells])
    return header, rows


def _write(value: float | None, factor: int, digits: int) -> str:
    return UNKNOWN if value is None else f"{factor * value:.{digits}f}"


def describe_pairs(about: Mapping[str, Any]) -> str:
    """Say how many pairs there are, in how many folds, and after which round the model was taken."""
    pairs, folds, of_round = (about.get(name) for name in ("num_pairs", "num_folds", "round"))
    size = f"{pairs:,} pairs" if isinstance(pairs, int) else "Pairs"
    parts = f" in {folds} folds" if isinstance(folds, int) else ""
    model = f", by the model after round {of_round}" if isinstance(of_round, int) else ""
    return f"{size}{parts}{model}; ± is the standard error of the mean over the folds."


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
