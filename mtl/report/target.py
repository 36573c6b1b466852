"""When a run first reached its `target_accuracy`: the round, and what it had cost until then.

The rate is that of the validation images at the evaluations over the rounds, so that no test image has a say.
"""

from collections.abc import Mapping

ROUND = "fit/target_round"
COSTS = {  # key of `summary.json`: metric over the rounds
    "cost/modelled_seconds_to_target": "cost/modelled_seconds",
    "cost/modelled_joules_to_target": "cost/modelled_joules",
}


def costs_to_target(curves: Mapping[str, Mapping[int, float]], metric: str, target: float) -> dict[str, float | None]:
    """Return the entries of `summary.json`, None where the target was not reached; costs only where they are modelled.

    Args:
        curves: value by round by metric.
        metric: the rate, such as `val/rank1`.
        target: the rate to reach.
    """
    first = next((number for number, rate in sorted(curves.get(metric, {}).items()) if rate >= target), None)
    costs = {key: curves[cost] for key, cost in COSTS.items() if cost in curves}
    return {ROUND: first} | {key: None if first is None else curve[first] for key, curve in costs.items()}
