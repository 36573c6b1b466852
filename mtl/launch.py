"""`mtl train`: from the words of a command line to one run or a sweep of runs, by Hydra."""

import os
import re
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtl.configs import CONFIG_NAME, DEFAULTS, compose, register
from mtl.train import train
from mtl.types import Diverged, Interrupted


def experiments_folder() -> Path | None:
    """Where `+experiment=NAME` is looked up: `experiments/` here, else beside the package (a clone)."""
    for folder in (Path.cwd() / "experiments", Path(__file__).resolve().parents[1] / "experiments"):
        if folder.is_dir():
            return folder
    return None


def launch(words: list[str]) -> int:
    """The exit code: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C."""
    register(experiments_folder())
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra wants its flags before the overrides; a user may write them anywhere.
    flags = [word for word in words if word in ("-m", "--multirun")]
    sys.argv = ["mtl train", *flags, *(word for word in words if word not in flags)]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=CONFIG_NAME)(_run)()
    except SystemExit as end:  # Hydra's own flags, as --help, end this way
        return end.code if isinstance(end.code, int) else 0
    except Interrupted as stop:
        print(f"mtl: {stop}", file=sys.stderr)
        return 130
    except OSError as error:
        kind = "" if isinstance(error, ValueError) else "output_dir cannot be used, or a file cannot be read: "
        print(f"mtl: error: {kind}{error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException, ValueError, Diverged) as error:
        print(f"mtl: error: {_reason(error)}{_choices(str(error), words)}", file=sys.stderr)
        return 1 if isinstance(error, Diverged) else 2
    return 0


def _run(config: DictConfig) -> float | None:
    context = HydraConfig.get()
    run_dir = Path(context.runtime.output_dir)
    if context.mode == RunMode.MULTIRUN:
        config.tracking.group = config.tracking.group or Path(context.sweep.dir).name
        config.name = config.name or context.job.override_dirname
    summary = train(config, run_dir)
    print(f"run directory: {run_dir}")
    if config.write_report:
        print(f"report: {run_dir / 'report.html'}")
    return summary.get("test/rank1", summary["test/auroc"])


def _choices(message: str, words: list[str]) -> str:
    """The keys that stand where an unknown one was given; Hydra does not list them."""
    unknown = re.match(r"Could not override '([^']+)'", message)
    if unknown is None:
        return ""
    parent = unknown[1].rpartition(".")[0]
    config = compose([word for word in words if word.partition("=")[0] in DEFAULTS and "," not in word])
    node = OmegaConf.select(config, parent) if parent else config
    keys = [str(key) for key in node if not str(key).startswith("_")] if isinstance(node, DictConfig) else []
    return f"\n{parent or 'the configuration'} has the keys {', '.join(keys)}" if keys else ""


def _reason(error: BaseException) -> str:
    """What to tell the user: Hydra wraps an error of a constructor in its own."""
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, ValueError | OSError | HydraException | OmegaConfBaseException):
        return _reason(cause)
    return str(error)
