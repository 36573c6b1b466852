"""The command line: `mtl train`, `mtl report`, `mtl verify`, `mtl enrol`, `mtl recognise`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HELP = """\
mtl: multi-task learning of binary subtasks over simulated edge devices

  mtl train [GROUP=MEMBER] [KEY=VALUE] ...   train, by default the ORL faces on eight devices; --help lists groups and defaults
  mtl train -m seed=0,1,2 loss=bce,sphereface2   a sweep: every combination, one run directory each
  mtl report RUN...                          one page and pictures from run directories; several runs stand side by side
  mtl verify RUN --pairs lfw --root DIR      face verification of a run's trunk: ten folds, equal error rate, ROC and DET
  mtl enrol --gallery DIR --model RUN        a gallery of people from a folder of photos for each
  mtl recognise PHOTO... --gallery FILE      find the faces in photos and say whose they are

  --version                                  the version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": _train, "report": _report, "verify": _verify, "enrol": _enrol, "recognise": _recognise}
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from mtl import __version__

        print(f"mtl {__version__}")
        return 0
    if words[0] not in commands:
        return _fail(f"unknown command {words[0]!r}; choose from {', '.join(commands)}")
    try:
        return commands[words[0]](words[1:])
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130)


def _fail(message: str, code: int = 2) -> int:
    print(f"mtl: error: {message}", file=sys.stderr)
    return code


def _train(words: list[str]) -> int:
    from mtl.launch import launch

    return launch(words)


def _report(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mtl report", description="One self-contained page and PNGs from run directories.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them (a sweep)")
    parser.add_argument("--output", type=Path, help="folder of the report; default: the run, or the folder of the runs")
    options = parser.parse_args(words)
    from rich.console import Console

    from mtl.report.page import write_report
    from mtl.report.runs import find_runs
    from mtl.report.tables import comparison_table

    try:
        runs = find_runs(options.runs)
        page = write_report(runs, options.output)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    Console(width=None if sys.stdout.isatty() else 150).print(comparison_table(runs))
    print(f"report: {page}")
    return 0


def _verify(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl verify", description="Do two pictures show the same person? The trunk of a run says."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--pairs", default="lfw", help="lfw (its View 2), or celeba (people of its test part; default: %(default)s)"
    )
    parser.add_argument("--root", default="data", help="the folder that holds the pictures, as data.root (default: %(default)s)")
    parser.add_argument(
        "--crop", type=int, nargs=4, metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"), help="cut from every picture first"
    )
    parser.add_argument("--no-flip", action="store_true", help="embed the picture alone, not the mean with its mirror image")
    options = parser.parse_args(words)
    from rich.console import Console

    from mtl.verify import verification_table, verify_run

    try:
        result = verify_run(options.run, options.pairs, options.root, crop=options.crop, flip=not options.no_flip)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    Console(width=None if sys.stdout.isatty() else 150).print(verification_table(result))
    print(f"written: {result.file} and {result.picture}")
    return 0


def _enrol(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl enrol", description="Find the face in each photo of each person and write their embeddings as a gallery."
    )
    parser.add_argument(
        "--gallery", required=True, type=Path, metavar="DIR", help="a folder with a folder of photos for each person"
    )
    parser.add_argument(
        "--model", required=True, type=Path, metavar="RUN", help="a run directory of mtl train +experiment=detect"
    )
    parser.add_argument("--output", type=Path, default=Path("gallery.npz"), metavar="FILE", help="default: gallery.npz")
    parser.add_argument("--threshold", type=float, help="cosine from which a face is somebody; default: calibrated on the photos")
    options = parser.parse_args(words)
    from mtl.recognise import enrol

    try:
        enrol(options.gallery, options.model, options.output, threshold=options.threshold)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    print(f"gallery: {options.output}")
    return 0


def _recognise(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl recognise",
        description="Find the faces in photos and say whose they are; write pictures with frames and a JSON.",
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="a photo, a folder of them, or a pattern as 'holiday/*.jpg'")
    parser.add_argument("--gallery", required=True, type=Path, metavar="FILE", help="what mtl enrol wrote")
    parser.add_argument("--model", type=Path, metavar="RUN", help="default: where the model was when the gallery was made")
    parser.add_argument("--output", type=Path, default=Path("recognised"), metavar="DIR", help="default: recognised")
    options = parser.parse_args(words)
    from mtl.recognise import recognise

    try:
        recognise(options.photos, options.gallery, options.output, run=options.model)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    print(f"pictures and recognised.json: {options.output}")
    return 0
