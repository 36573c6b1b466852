"""`mtl latency`: milliseconds of an exported file."""

import argparse
from dataclasses import asdict

from mtl.cli.terminal import path


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl latency`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="mtl latency", description="Milliseconds for one image after the other on a CPU.")
    parser.add_argument("file", type=path, metavar="FILE", help="an exported .onnx or .pte")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--warmup", type=int, default=20, help="images that do not count; default 20")
    parser.add_argument("--repeats", type=int, default=200, help="images that count; default 200")
    parser.add_argument("--output", type=path, metavar="FILE", help="a JSON of the result and the machine; default: none")
    options = parser.parse_args(words)
    from mtl.base.files import write_json
    from mtl.edge.files import check_output
    from mtl.edge.latency import measure_file
    from mtl.edge.machine import timing_machine

    if options.output is not None:
        check_output("--output", options.output)
    latency = measure_file(options.file, threads=options.threads, warmup=options.warmup, repeats=options.repeats)
    machine = timing_machine(options.file.suffix, options.threads)
    if options.output is not None:
        write_json(options.output, {"file": str(options.file), "milliseconds": asdict(latency), "machine": machine})
    threads = f"{options.threads} thread{'s'[: options.threads > 1]}"
    print(f"p50 {latency.p50:.3f} ms   p90 {latency.p90:.3f} ms   ({latency.repeats} images one after the other, {threads})")
    print(f"{machine['processor']}, {machine['runtime']}, {machine['system']}")
    return 0
