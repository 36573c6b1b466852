"""Galleries: templates, files, people added and removed, one person under two names."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtl.faces.calibration import Strangers, make_templates
from mtl.faces.doubles import find_doubles, find_enrolled_strangers
from mtl.faces.gallery import UNKNOWN, Gallery, GalleryError, Photos, make_gallery
from tests.faces.test_calibration import at, cosine, strangers


def people() -> Gallery:
    return make(ada=at(0, 10), bob=at(90, 100))


def make(strangers: Strangers | None = None, threshold: float | None = None, **embeddings: Tensor) -> Gallery:
    """Every photo another picture."""
    rows = [
        Photos(
            name, files := tuple(f"{name}/{number + 1}.jpg" for number in range(len(photo_embeddings))), photo_embeddings, files
        )
        for name, photo_embeddings in embeddings.items()
    ]
    return make_gallery(rows, strangers=strangers, threshold=threshold, model="abc", run="/runs/x")


def test_a_face_is_the_likest_person_or_nobody() -> None:
    gallery = people()
    assert torch.allclose(gallery.templates, at(5, 95), atol=1e-6)
    person, likeness = gallery.match(at(4, 92, 220))
    assert person.tolist() == [0, 1, UNKNOWN]
    assert likeness.tolist() == pytest.approx([cosine(1), cosine(3), cosine(125)], abs=1e-5)
    assert torch.allclose(make_templates(at(0, 90), torch.tensor([0, 0]), 1), at(45), atol=1e-6)


@pytest.mark.parametrize("others", [None, strangers(at(200), at(140, 300))])
def test_a_saved_gallery_is_the_same(tmp_path: Path, others: Strangers | None) -> None:
    gallery = make(others, ada=at(0, 10), bob=at(90, 100))
    gallery.save(tmp_path / "sub" / "g.npz")
    again = Gallery.load(tmp_path / "sub" / "g.npz")
    assert (again.names, again.files, again.calibration) == (gallery.names, gallery.files, gallery.calibration)
    assert (again.model, again.run) == ("abc", "/runs/x")
    assert torch.equal(again.embeddings, gallery.embeddings)
    assert torch.equal(again.person, gallery.person)
    assert again.digests == gallery.digests
    assert (again.strangers is None) == (others is None)
    if others is not None and again.strangers is not None:
        assert torch.equal(again.strangers.embeddings, others.embeddings)
        assert torch.equal(again.strangers.person, others.person)
        assert (again.strangers.names, again.strangers.from_user, again.strangers.source) == (
            others.names,
            others.from_user,
            others.source,
        )


def test_what_is_no_gallery_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="does not exist; mtl enrol makes one"):
        Gallery.load(tmp_path / "none.npz")
    people().save(tmp_path / "g.npz")
    content = (tmp_path / "g.npz").read_bytes()
    for number, damage in enumerate((content[: len(content) // 2], b"", b"not a gallery")):
        file = tmp_path / f"{number}.npz"
        file.write_bytes(damage)
        with pytest.raises(GalleryError, match="a damaged file or one of another kind"):
            Gallery.load(file)


def test_people_are_added_and_removed_and_the_threshold_is_that_of_who_is_there() -> None:
    others = strangers(at(200), at(140, 300))
    both = make(others, ada=at(0, 10), bob=at(90, 100))
    three = both.add(make(cyd=at(45, 50)).people)
    assert three.names == ("ada", "bob", "cyd")
    assert three.calibration == make(others, ada=at(0, 10), bob=at(90, 100), cyd=at(45, 50)).calibration
    assert three.calibration.threshold != both.calibration.threshold
    again = three.remove(["cyd"])
    assert (again.names, again.files, again.calibration) == (both.names, both.files, both.calibration)
    assert torch.equal(again.embeddings, both.embeddings)


def test_a_threshold_that_was_given_stays_until_another_is() -> None:
    gallery = make(None, 0.4, ada=at(0, 10), bob=at(90, 100))
    assert gallery.add(make(cyd=at(45, 50)).people).calibration.threshold == 0.4
    assert gallery.remove(["bob"], threshold=0.5).calibration.threshold == 0.5


def test_people_who_are_there_or_not_are_named_when_refused() -> None:
    gallery = people()
    with pytest.raises(GalleryError, match="not enrolled yet, got bob"):
        gallery.add(make(bob=at(45)).people)
    with pytest.raises(GalleryError, match="people of the gallery, ada, bob; got cyd"):
        gallery.remove(["cyd"])
    with pytest.raises(GalleryError, match="must leave somebody"):
        gallery.remove(["ada", "bob"])


def test_one_picture_under_two_names_is_refused_and_both_are_named() -> None:
    ada = Photos("ada", ("ada/1.jpg", "ada/2.jpg"), at(0, 10), ("x", "y"))
    bob = Photos("bob", ("bob/7.png",), at(10), ("y",))
    with pytest.raises(GalleryError, match=r"ada/2\.jpg of ada and bob/7\.png of bob"):
        make_gallery([ada, bob], threshold=None, model="", run="")
    with pytest.raises(GalleryError, match=r"bob/7\.png of bob"):
        make_gallery([ada], threshold=None, model="", run="").add([bob])


def test_one_person_under_two_names_is_found_and_both_photos_are_named() -> None:
    (text,) = find_doubles(make(ada=at(0, 20), bob=at(90, 100), robert=at(93, 97)))
    assert text.startswith("bob and robert may be one person under two names")
    assert "bob/1.jpg and robert/1.jpg most (cosine 0.999)" in text
    assert find_doubles(people()) == []


def test_a_single_photo_is_held_against_the_others_own_or_the_threshold() -> None:
    # Ada's two photos are 20 degrees from each other.
    assert len(find_doubles(make(ada=at(0, 20), bob=at(15)))) == 1
    assert find_doubles(make(ada=at(0, 20), bob=at(60))) == []
    assert len(find_doubles(make(None, cosine(10), ada=at(0), bob=at(8)))) == 1
    assert find_doubles(make(None, cosine(10), ada=at(0), bob=at(12))) == []


def test_a_stranger_by_name_is_none_and_one_by_looks_is_named() -> None:
    # Two strangers are as near to ada as her photos to each other; the one of her name does not count.
    others = strangers(at(1, 3, 5), at(2, 4, 6), at(170, 180, 190), names=("ada", "s2", "s3"))
    gallery = make(others, ada=at(0, 10), bob=at(90, 100))
    assert gallery.calibration.refused is not None
    assert (gallery.calibration.refused.people, gallery.calibration.refused.faces) == (2, 6)
    assert find_enrolled_strangers(gallery) == ["s2 (as ada)"]
