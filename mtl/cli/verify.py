"""`mtl verify`: face verification of a run's trunk."""

import argparse
import os
import sys

from mtl.cli.terminal import console, path


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl verify`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="mtl verify", description="Verify by the trunk of a run whether two pictures show the same person."
    )
    parser.add_argument("run", type=path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--pairs", default="lfw", help="lfw (its View 2), or celeba (people of its test part; default: %(default)s)"
    )
    parser.add_argument(
        "--root",
        type=os.path.expanduser,
        default="data",
        help="the folder that holds the pictures, as data.root (default: %(default)s)",
    )
    parser.add_argument(
        "--crop",
        type=int,
        nargs=4,
        metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"),
        help="cut from every picture first; default: the run's data.crop for pictures of the set it was trained on, else nothing",
    )
    parser.add_argument("--no-flip", action="store_true", help="embed the picture alone, not the mean with its mirror image")
    parser.add_argument(
        "--beside",
        type=path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="further runs, whose cosines are averaged with this one's",
    )
    parser.add_argument(
        "--allow-unknown", action="store_true", help="go on where a run that it learned from is missing; the result says so"
    )
    options = parser.parse_args(words)
    from mtl.trained.verify import verification_table, verify_run

    result = verify_run(
        options.run,
        options.pairs,
        options.root,
        crop=options.crop,
        flip=not options.no_flip,
        other_runs=options.beside,
        allow_unknown=options.allow_unknown,
    )
    for warning in result.warnings:
        print(f"mtl: warning: {warning}", file=sys.stderr)
    console().print(verification_table(result))
    print(f"written: {result.file} and {result.picture}")
    return 0
