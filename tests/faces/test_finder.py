"""Finding, matching and embedding."""

import pytest
import torch
from torch import nn

from mtl.data.transforms import Normalise
from mtl.faces.finder import DetectionOptions, FaceFinder, Faces, _distinct, match_faces
from mtl.models.centre import CentreHead
from mtl.models.cnn import small_cnn


def make_finder(seed: int = 0) -> FaceFinder:
    torch.manual_seed(seed)
    shape = (1, 24, 20)
    trunk, head = small_cnn(shape, channels=[8, 8, 8], width=8), CentreHead(8, width=8)
    nn.init.normal_(head.output.weight, std=1.0)
    return FaceFinder(trunk.eval(), head.eval(), Normalise(), crop_shape=shape, margin=0.1)


def test_a_true_box_is_taken_once_by_the_surest_that_overlaps_it_enough() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0.0, 0, 10, 10], [20.0, 0, 30, 5], [20.0, 0, 30, 4.9], [50.0, 50, 60, 60]])
    assert match_faces(boxes, truth).tolist() == [0, -1, 1, -1, -1]
    assert match_faces(boxes, truth[:0]).tolist() == [-1] * 5
    assert match_faces(boxes[:0], truth).tolist() == []


def test_pictures_of_a_batch_do_not_influence_each_other() -> None:
    finder, images = make_finder(), torch.rand(3, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    batch = finder.find(images, confidence=0.2)
    for image, faces in zip(images, batch, strict=True):
        (alone,) = finder.find(image[None], confidence=0.2)
        assert torch.allclose(alone.boxes, faces.boxes, atol=1e-3)
        assert torch.allclose(alone.scores, faces.scores, atol=1e-5)


def test_faces_lie_in_the_picture_surest_first_and_overlap_by_no_more_than_half() -> None:
    image = torch.rand(1, 1, 160, 128, generator=torch.Generator().manual_seed(2))
    for pyramid in (False, True):
        (faces,) = make_finder().find(image, confidence=0.1, pyramid=pyramid)
        assert len(faces) > 1
        assert bool((faces.boxes >= 0).all())
        assert bool((faces.boxes <= torch.tensor([128.0, 160, 128, 160])).all())
        assert faces.scores.tolist() == sorted(faces.scores.tolist(), reverse=True)
        matched = match_faces(faces.boxes, faces.boxes, overlap=0.5)
        assert matched.tolist() == list(range(len(faces)))


def test_of_boxes_that_show_one_face_only_the_surest_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 40, 40], [4.0, 0, 44, 40], [10.0, 10, 20, 20], [30.0, 30, 60, 60], [70.0, 70, 70.5, 90]])
    faces = _distinct(Faces(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])))
    # The second overlaps the first by 36 / 44, the third lies in it, the fourth shares a ninth of itself with it, the last is a line.
    assert faces.scores.tolist() == pytest.approx([0.9, 0.6])
    # Were the small one surer, it would stay in the place of both that hold it.
    faces = _distinct(Faces(boxes, torch.tensor([0.7, 0.8, 0.9, 0.6, 0.5])))
    assert faces.scores.tolist() == pytest.approx([0.9, 0.6])


def test_embeddings_have_length_one_and_are_those_of_the_mirror_image_too() -> None:
    finder, crops = make_finder(), torch.rand(4, 1, 24, 20, generator=torch.Generator().manual_seed(3))
    embeddings = finder.embed(crops)
    assert embeddings.shape == (4, 8)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4))
    assert torch.allclose(finder.embed(crops.flip(-1)), embeddings, atol=1e-6)


def test_the_fingerprint_tells_models_and_preparations_apart() -> None:
    finder = make_finder()
    assert finder.fingerprint() == make_finder().fingerprint()
    assert finder.fingerprint() != make_finder(seed=1).fingerprint()
    finder.margin = 0.2
    assert finder.fingerprint() != make_finder().fingerprint()


def test_unusable_options_are_refused() -> None:
    for options, message in (
        ({"batch_size": 0}, "detection.batch_size must be >= 1, got 0"),
        ({"confidence": 1.0}, r"detection.confidence must be in \(0, 1\), got 1.0"),
        ({"margin": -1.0}, r"detection.margin must be in \[0, 2\], got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            DetectionOptions(**options)  # type: ignore[arg-type]
