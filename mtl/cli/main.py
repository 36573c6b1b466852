"""The command line: `main` picks the command."""

import importlib
import os
import sys
from collections.abc import Sequence

from mtl.cli.terminal import fail, message_of

COMMANDS = ("train", "experiments", "study", "report", "verify", "enrol", "recognise", "export", "latency", "compress")

HELP = """\
mtl: multi-task learning of binary subtasks over simulated edge devices

  mtl train [GROUP=MEMBER] [KEY=VALUE] ...   train, by default the ORL faces on eight devices
  mtl train --help [GROUP|GROUP=MEMBER|KEY]  what can be chosen and set, with defaults
  mtl train --cfg job ...                    print the configuration of a run and do not train
  mtl train -m seed=0,1,2 loss=bce,sphereface2   a sweep: every combination, one run directory each; with --dry-run its jobs
  mtl experiments [NAME]                     the named experiments, which mtl train +experiment=NAME runs; NAME prints its file
  mtl study NAME                             a published table: trains the runs that are missing; --list shows all, --quick takes minutes
  mtl report RUN...                          one page and pictures from run directories; several runs stand side by side
  mtl verify RUN --pairs lfw --root DIR      face verification of a run's trunk: ten folds, equal error rate, ROC and DET
  mtl enrol --gallery DIR --model RUN        a gallery of people from a folder of photos for each; --add, --remove, --list
  mtl recognise PHOTO... --gallery FILE      find and name the faces in photos
  mtl export RUN --to onnx [--int8]          one file for a device from a run directory, checked against the model on the run's images
  mtl latency FILE [--threads 1]             how long an exported file takes for one image
  mtl compress RUN --recipe distil prune int8   a smaller model step by step, and what each step costs and saves

  --version                                  the version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of `mtl`.

    Args:
        arguments: the words after `mtl`, None for those that the program was started with.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C.
    """
    # Pictures are written and never shown: what a notebook has said to its own matplotlib is not for us.
    os.environ["MPLBACKEND"] = "agg"
    # Nor are files in the working folder meant that are named as Python's own modules.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        code = _main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from mtl import __version__

        print(f"mtl {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return fail(f"unknown command {words[0]!r}; choose from {', '.join(COMMANDS)}")
    try:
        return run_command(words)
    except KeyboardInterrupt as stop:
        return fail(message_of(stop, "stopped by Ctrl-C"), 130)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return fail(message_of(error))


def run_command(words: list[str]) -> int:
    """Run `mtl WORDS`, of which the first is a command, and return its exit code."""
    code: int = importlib.import_module(f"mtl.cli.{words[0]}").main(words[1:])
    return code
