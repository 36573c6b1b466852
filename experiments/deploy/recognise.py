"""What a device does: an exported file on pictures, with onnxruntime, numpy and Pillow alone.

    mtl export RUN --to onnx --out faces.onnx
    python experiments/deploy/recognise.py faces.onnx photo.jpg ...

prints for each picture the subtasks that the model says yes to, else the likeliest, with their scores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_picture(path: Path, shape: tuple[int, int, int], crop: tuple[int, int, int, int] | None) -> Any:
    """uint8 [1, c, height, width]: upright, cut to (top, left, height, width) where `crop` is given, and resized by area."""
    channels, height, width = shape
    picture = ImageOps.exif_transpose(Image.open(path)).convert("L" if channels == 1 else "RGB")
    if crop is not None:
        top, left, crop_height, crop_width = crop
        picture = picture.crop((left, top, left + crop_width, top + crop_height))
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="from mtl export")
    parser.add_argument("pictures", type=Path, nargs="+")
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(str(options.file), providers=["CPUExecutionProvider"])
    facts = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    for path in options.pictures:
        image = read_picture(path, facts["mtl.image_shape"], facts["mtl.crop"])
        scores = session.run(["scores"], {"images": image})[0][0]
        yes = [t for t in np.argsort(-scores) if scores[t] > facts["mtl.thresholds"][t]]
        named = ", ".join(f"{facts['mtl.tasks'][t]} {scores[t]:.2f}" for t in yes or [scores.argmax()])
        print(f"{path}: {'' if yes else 'none; likeliest '}{named}")


if __name__ == "__main__":
    main()
