"""`mtl train`: one run or a sweep of runs, or the help on what can be chosen."""


def main(words: list[str]) -> int:
    """Run the command, or print its help.

    Args:
        words: what follows `mtl train`.

    Returns:
        The exit code.
    """
    if any(word in ("-h", "--help") or word.startswith("--help=") for word in words):
        from mtl.cli.help import help_text

        topics = [word.removeprefix("--help=") for word in words if word not in ("-h", "--help")]
        print(help_text([topic for topic in topics if not topic.startswith("-")]), end="")
        return 0
    from mtl.cli.launch import launch

    return launch(words)
