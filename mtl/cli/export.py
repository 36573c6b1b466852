"""`mtl export`: a file for a device."""

import argparse
import os

from mtl.cli.terminal import path


def main(words: list[str]) -> int:
    """Run the command.

    Args:
        words: what follows `mtl export`.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="mtl export", description="One file for a device, from stored image to scores, from a run."
    )
    parser.add_argument("run", type=path, metavar="RUN", help="a run directory")
    parser.add_argument("--to", default="onnx", choices=("onnx", "executorch"), help="default: onnx")
    parser.add_argument("--int8", action="store_true", help="8-bit weights and activations, calibrated on training images")
    parser.add_argument(
        "--qat-steps", type=int, default=0, metavar="N", help="steps of training with simulated int8 before; default 0"
    )
    parser.add_argument("--calibration", type=int, default=256, metavar="N", help="images to calibrate on; default 256")
    parser.add_argument("--thresholds", default="zero", choices=("zero", "calibrated"), help="calibrated: on validation images")
    parser.add_argument("--client", type=int, metavar="K", help="whose model, where parts of it stay on the clients")
    parser.add_argument("--no-mirror", action="store_true", help="score the picture alone, not the mean with its mirror image")
    parser.add_argument(
        "--scene",
        type=int,
        nargs=2,
        default=(480, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="in which faces are found; default 480 640",
    )
    parser.add_argument(
        "--data-root", type=os.path.expanduser, metavar="DIR", help="where the data of the run lie now, if elsewhere"
    )
    parser.add_argument("--out", type=path, metavar="FILE", help="default: model[_int8].onnx or .pte in the run directory")
    options = parser.parse_args(words)

    from mtl.trained.export import ExportOptions, export_run

    chosen = ExportOptions(
        to=options.to,
        int8=options.int8,
        qat_steps=options.qat_steps,
        client=options.client,
        thresholds=options.thresholds,
        calibration=options.calibration,
        mirror=not options.no_mirror,
        scene=options.scene,
    )
    done = export_run(options.run, chosen, out=options.out, data_root=options.data_root)
    away = done.parity
    print(f"{done.path}: {done.num_bytes:,} bytes, {done.flops / 1e6:,.2f} MFLOP (2 MAC) for an image")
    embeddings = f"the embeddings within {away.embeddings:.2g}, " if away.embeddings is not None else ""
    print(
        f"on {away.images} test images {embeddings}the scores within {away.scores:.2g} of the model's (cosine at least {away.cosine:.5f})"
    )
    if done.detector is not None:
        detector = done.detector
        print(
            f"{detector.path}: {detector.num_bytes:,} bytes; its maps of {detector.images} scenes are within {detector.difference:.2g}"
        )
    for name in ("rank1", "balanced_accuracy", "auroc"):
        before, after = done.eager.get(name), done.file.get(name)
        if before is not None and after is not None:
            print(f"{name.replace('_', ' '):<18} model {100 * before:6.2f} %   file {100 * after:6.2f} %")
    return 0
