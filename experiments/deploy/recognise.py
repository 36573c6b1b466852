"""What a device does: an exported file on pictures, with onnxruntime, numpy and Pillow alone.

    mtl export RUN --to onnx --out faces.onnx
    python experiments/deploy/recognise.py faces.onnx photo.jpg ...

prints for each picture the subtasks that the model says yes to, else the likeliest, with their scores. Pictures are read by the rule in the
file's metadata, `mtl.picture`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

# What this script can do; a file that asks for anything else is refused.
RULE = {"orientation": "exif", "sixteen_bit": 257, "background": "black", "resize": "box", "layout": "CHW", "values": "uint8"}


def open_file(path: Path) -> tuple[Any, dict[str, Any]]:
    """A session, and what the file says of itself. Ends the program where the file cannot be used here."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    facts = {name.removeprefix("mtl."): json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    taken = session.get_inputs()[0].shape
    if any(not isinstance(side, int) for side in taken[1:]):
        raise SystemExit(f"{path} must take images of one size, and height and width are left open: {taken}; export it again")
    if facts.get("picture") is None:
        raise SystemExit(f"{path} must say how a picture is read (mtl.picture), and it does not; mtl export writes it")
    for step, value in RULE.items():
        if facts["picture"].get(step) != value:
            raise SystemExit(f"{path} reads pictures with {step}={facts['picture'].get(step)}, and this script knows {value}")
    return session, facts


def open_picture(path: Path, channels: int, rule: Mapping[str, Any] = RULE) -> Image.Image:
    """Upright, of 8 bits, without transparency, grey or RGB."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):
        picture = Image.fromarray(np.rint(np.asarray(picture) / rule["sixteen_bit"]).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, rule["background"]), picture)
    return picture.convert("L" if channels == 1 else "RGB")


def as_pixels(picture: Image.Image) -> Any:
    """uint8 [1, c, height, width]."""
    pixels = np.asarray(picture)
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))[None]


def read_picture(path: Path, shape: Sequence[int], crop: Sequence[int] | None, rule: Mapping[str, Any] = RULE) -> Any:
    """uint8 [1, c, height, width]: cut to (top, left, height, width) where `crop` is given, and resized. rule: as in `RULE`."""
    channels, height, width = shape
    picture = open_picture(path, channels, rule)
    if crop is not None:
        top, left, crop_height, crop_width = crop
        if top + crop_height > picture.height or left + crop_width > picture.width:
            raise SystemExit(f"{path} must hold the crop {tuple(crop)}, got {picture.height} x {picture.width} pixels")
        picture = picture.crop((left, top, left + crop_width, top + crop_height))
    return as_pixels(picture.resize((width, height), Image.Resampling[rule["resize"].upper()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="from mtl export")
    parser.add_argument("pictures", type=Path, nargs="+")
    options = parser.parse_args()
    session, facts = open_file(options.file)
    if not facts["tasks"]:
        raise SystemExit(f"{options.file} finds faces and has no subtasks: use find_faces.py")
    for path in options.pictures:
        image = read_picture(path, facts["image_shape"], facts["picture"]["crop"], facts["picture"])
        scores = session.run(["scores"], {"images": image})[0][0]
        yes = [t for t in np.argsort(-scores) if scores[t] > facts["thresholds"][t]]
        named = ", ".join(f"{facts['tasks'][t]} {scores[t]:.2f}" for t in yes or [scores.argmax()])
        print(f"{path}: {'' if yes else 'none; likeliest '}{named}")


if __name__ == "__main__":
    main()
