"""`mtl recognise`: who is in a photo."""

import argparse
import os
from pathlib import Path

from mtl.cli.terminal import path


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl recognise`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="mtl recognise",
        description="Find and name the faces in photos; write pictures with frames and a JSON.",
    )
    parser.add_argument(
        "photos",
        type=os.path.expanduser,
        nargs="+",
        metavar="PHOTO",
        help="a photo, a folder of them, or a pattern as 'holiday/*.jpg'",
    )
    parser.add_argument("--gallery", required=True, type=path, metavar="FILE", help="what mtl enrol wrote")
    parser.add_argument("--model", type=path, metavar="RUN", help="default: where the model was when the gallery was made")
    parser.add_argument("--output", type=path, default=Path("recognised"), metavar="DIR", help="default: recognised")
    options = parser.parse_args(words)
    from mtl.trained.recognise import recognise

    recognise(options.photos, options.gallery, options.output, run=options.model)
    print(f"pictures and recognised.json: {options.output}")
    return 0
