"""Photos as users have them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mtl.faces.photos import MAX_PIXELS, UnreadablePhoto, draw_faces, find_photos, read_photo


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Dark, with a white top left corner."""
    image = Image.new("RGB", (width, height), (10, 20, 30))
    image.paste((255, 255, 255), (0, 0, width // 3, height // 3))
    return image


@pytest.mark.parametrize(
    ("kind", "mode"), [("jpg", "RGB"), ("jpg", "L"), ("png", "RGBA"), ("png", "L"), ("png", "P"), ("webp", "RGB")]
)
def test_every_kind_of_photo_is_read_alike(tmp_path: Path, kind: str, mode: str) -> None:
    path = tmp_path / f"photo.{kind}"
    picture().convert(mode).save(path)
    for channels in (1, 3):
        photo = read_photo(path, channels=channels)
        assert photo.image.shape == (channels, 40, 60)
        assert photo.scale == 1
        assert float(photo.image[:, 3:9, 3:15].min()) > 0.9
        assert float(photo.image[:, 20:, 30:].max()) < 0.25


def test_a_photo_is_turned_upright_by_its_exif_tag(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    picture().save(tmp_path / "turned.jpg", exif=exif)
    photo = read_photo(tmp_path / "turned.jpg", channels=1)
    assert photo.image.shape == (1, 60, 40)
    # The white corner goes from the top left to the top right.
    assert float(photo.image[0, 3:15, -9:-3].min()) > 0.9
    assert draw_faces(tmp_path / "turned.jpg", [], [], []).size == (40, 60)


def test_a_large_photo_is_averaged_down_and_says_by_how_much(tmp_path: Path) -> None:
    picture(1200, 800).save(tmp_path / "large.png")
    photo = read_photo(tmp_path / "large.png", channels=3, max_side=600)
    assert photo.image.shape == (3, 400, 600)
    assert photo.scale == 2


def test_unreadable_photos_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    picture().save(tmp_path / "torn.jpg")
    content = (tmp_path / "torn.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(content[: len(content) // 2])
    for name in ("empty", "text", "torn", "missing"):
        with pytest.raises(UnreadablePhoto, match=rf"{name}.jpg cannot be decoded: it is empty, damaged or not an image"):
            read_photo(tmp_path / f"{name}.jpg", channels=1)
    Image.new("L", (15, 300)).save(tmp_path / "thin.png")
    with pytest.raises(UnreadablePhoto, match="at least 16 pixels on each side, got 15 x 300"):
        read_photo(tmp_path / "thin.png", channels=1)
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    with pytest.raises(UnreadablePhoto, match=rf"at most 64 megapixels .*, got {side} x {side}"):
        read_photo(tmp_path / "huge.png", channels=1)


def test_a_folder_named_with_the_signs_of_a_pattern_is_found(tmp_path: Path) -> None:
    for name in ("holiday [2024]/a.jpg", "holiday [2024]/b.png", "x/holiday [2024]/c.jpg", "holiday 2/d.jpg", "x/y/e[1].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def find(pattern: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_photos([f"{tmp_path}/{pattern}"])]

    assert find("holiday [2024]/*.jpg") == ["holiday [2024]/a.jpg"]
    assert find("*/holiday [2024]/*") == ["x/holiday [2024]/c.jpg"]
    assert find("holiday [2]/*") == ["holiday 2/d.jpg"]
    assert find("**/*.jpg") == ["holiday 2/d.jpg", "holiday [2024]/a.jpg", "x/holiday [2024]/c.jpg", "x/y/e[1].jpg"]
    assert find("x/*/e[1].jpg") == ["x/y/e[1].jpg"]


def test_photos_are_found_by_name_folder_and_pattern_each_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / "in" / name).write_bytes(b"x")
    a, b = tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.png"
    assert find_photos([str(tmp_path / "in")]) == [a, b]
    assert find_photos([str(b), str(tmp_path / "*" / "*")]) == [b, a]
    for wrong in (str(tmp_path / "nothing.jpg"), str(tmp_path / "*.gif"), str(tmp_path)):
        with pytest.raises(ValueError, match="PHOTO must be a photo, a folder of them or a pattern, got"):
            find_photos([wrong])


def test_frames_are_drawn_where_the_faces_are(tmp_path: Path) -> None:
    Image.new("L", (200, 160), 128).save(tmp_path / "grey.png")
    drawn = draw_faces(tmp_path / "grey.png", [(50.0, 60, 110, 130)], ["ada 0.91"], [True])
    pixels = torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).view(160, 200, 3).int()
    changed = (pixels != 128).any(2)
    assert bool(changed[60, 50:110].all())
    assert bool(changed[60:130, 50].all())
    assert not bool(changed[70:120, 60:100].any())
    assert pixels[130, 80].tolist() == [30, 160, 80]
