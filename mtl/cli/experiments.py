"""`mtl experiments`: the named experiments."""

import argparse


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl experiments`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="mtl experiments", description="The named experiments, with a line each.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the file of this experiment")
    options = parser.parse_args(words)
    from mtl.run.named_experiments import experiment_files, experiments_folder, listing, named_file

    files = experiment_files(experiments_folder())
    print(listing(files) if options.name is None else named_file(files, options.name).read_text(encoding="utf-8"), end="")
    return 0
