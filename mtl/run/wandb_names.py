"""What a run is called at W&B: the names of its metrics, its tags and its configuration.

Metrics of one subtask, `val/smiling/auroc` in `metrics.csv`, are `task/smiling/val_auroc` at W&B, which makes a section of the page
for each first word: `train`, `val`, `test`, `fit`, `cost` and, apart from them, `task`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.base.same_run import REPORTING

LONGEST_TAG = 64  # letters that the server takes
HYDRA_ZEN = ("_partial_", "_convert_", "_recursive_")


def metric_name(name: str) -> str:
    """The name of a metric at W&B."""
    stage, _, rest = name.partition("/")
    task, slash, metric = rest.rpartition("/")
    return f"task/{task}/{stage}_{metric}" if slash else name


def shown_config(config: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """The configuration as W&B shows it: a member by its `name`, without options of reporting, with the run directory."""
    experiment = {key: value for key, value in config.items() if key not in REPORTING}
    return {**_without_targets(experiment), "run_dir": str(run_dir.resolve())}


def _without_targets(value: Any) -> Any:
    if isinstance(value, Mapping):
        named = {"name": member(value)} if "_target_" in value else {}
        rest = {key: _without_targets(part) for key, part in value.items() if key != "_target_" and key not in HYDRA_ZEN}
        return named | rest
    return [_without_targets(part) for part in value] if isinstance(value, list) else value


def member(options: Any) -> str | None:
    """The name of the class or function that options are for, such as `LocalSGD`."""
    target = options.get("_target_") if isinstance(options, Mapping) else None
    return str(target).rpartition(".")[2] if target else None


def make_tags(config: Mapping[str, Any], more: Sequence[str]) -> list[str]:
    """The data, mode, algorithm, server and client of a run, and the user's tags; each once."""
    data, *methods = (member(config.get(group)) for group in ("data", "algorithm", "server", "client"))
    tags = [data, config.get("mode"), *methods, *more]
    return list(dict.fromkeys(str(tag)[:LONGEST_TAG] for tag in tags if tag))
