"""`mtl enrol`: a gallery of people."""

import argparse
import os
from pathlib import Path

from mtl.cli.terminal import console, path


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl enrol`.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(words)
    creates = not (options.add or options.remove or options.list)
    for option, required in (("gallery", creates or options.add), ("model", creates)):
        if required and getattr(options, option) is None:
            parser.error(f"--{option} is required")
    from mtl.faces.gallery import Gallery
    from mtl.trained import enrol

    if options.list:
        gallery = Gallery.load(options.output)
        console().print(enrol.people_table(gallery))
        print(gallery.calibration)
        return 0
    if options.remove:
        enrol.remove_people(options.remove, options.output, threshold=options.threshold)
    elif options.add:
        enrol.add_people(options.gallery, options.output, run=options.model, threshold=options.threshold)
    else:
        enrol.enrol(
            options.gallery,
            options.model,
            options.output,
            threshold=options.threshold,
            strangers=options.strangers,
            data_root=options.data_root,
            not_strangers=options.not_strangers,
            force=options.force,
        )
    print(f"gallery: {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtl enrol",
        description="Find the face in each photo of each person and write their embeddings as a gallery; add, remove and list people.",
    )
    parser.add_argument("--gallery", type=path, metavar="DIR", help="a folder with a folder of photos for each person")
    parser.add_argument(
        "--model",
        type=path,
        metavar="RUN",
        help="a run directory of mtl train +experiment=detect; with --add that of the gallery",
    )
    parser.add_argument("--output", type=path, default=Path("gallery.npz"), metavar="FILE", help="default: gallery.npz")
    parser.add_argument(
        "--threshold",
        type=float,
        help="minimum cosine similarity to accept a match, in (-1, 1); default: calibrated on photos and strangers",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--add", action="store_true", help="add the people of --gallery to --output")
    what.add_argument("--remove", nargs="+", metavar="NAME", help="remove people from --output")
    what.add_argument("--list", action="store_true", help="list who is in --output, and the error rates of its threshold")
    what.add_argument("--force", action="store_true", help="overwrite --output")
    parser.add_argument("--strangers", type=path, metavar="DIR", help="photos of people not enrolled, laid out as --gallery")
    parser.add_argument(
        "--data-root",
        type=os.path.expanduser,
        metavar="DIR",
        help="where the data of the run lie now, if elsewhere: its people are strangers",
    )
    parser.add_argument(
        "--not-strangers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="people of the run's data who are enrolled under another name",
    )
    return parser
