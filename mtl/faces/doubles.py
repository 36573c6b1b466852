"""People of a gallery who may be one person under two names, or strangers under another name."""

import itertools

import torch
from torch import Tensor

from mtl.faces.calibration import left_out
from mtl.faces.gallery import Gallery

DOUBLE = 0.375  # share of two people's photos from which they may be one person


def find_doubles(gallery: Gallery) -> list[str]:
    """Find pairs of people who may be one person under two names.

    They may be where at least `DOUBLE` of their photos, left out of their own template, are at least as similar to the other's template.
    The photo of a person with one photo must be as similar as the least similar of the other's photos; where both have one, it must reach
    the threshold.

    Returns:
        A sentence for each pair that names their two most similar photos, the most certain pair first.
    """
    same, _ = left_out(gallery.embeddings, gallery.person, len(gallery.names))
    cosines = gallery.embeddings @ gallery.templates.T
    people = [(gallery.person == place).nonzero().flatten() for place in range(len(gallery.names))]
    pairs = []
    for a, b in itertools.combinations(range(len(people)), 2):
        photos_a, photos_b = people[a], people[b]
        nearer = torch.cat(
            [
                _nearer(same[photos_a], cosines[photos_a, b], same[photos_b], gallery),
                _nearer(same[photos_b], cosines[photos_b, a], same[photos_a], gallery),
            ]
        )
        share = float(nearer.double().mean())
        if share < DOUBLE:
            continue
        between = gallery.embeddings[photos_a] @ gallery.embeddings[photos_b].T
        row, column = divmod(int(between.argmax()), between.shape[1])
        first, second = gallery.files[int(photos_a[row])], gallery.files[int(photos_b[column])]
        pairs.append(
            (
                share,
                f"{gallery.names[a]} and {gallery.names[b]} may be one person under two names: {int(nearer.sum())} of their "
                f"{len(nearer)} photos are as near to the other, {first} and {second} most (cosine {float(between.max()):.3f})",
            )
        )
    return [text for _, text in sorted(pairs, reverse=True)]


def find_enrolled_strangers(gallery: Gallery) -> list[str]:
    """Find strangers who may be enrolled under another name.

    These have three faces or more, of which at least half are as similar to an enrolled person as the median of that person's photos.

    Returns:
        Their names, each with the enrolled name in brackets.
    """
    if gallery.strangers is None:
        return []
    strangers = gallery.strangers.without(set(gallery.names))
    same, _ = left_out(gallery.embeddings, gallery.person, len(gallery.names))
    level = torch.stack([same[gallery.person == place].median() for place in range(len(gallery.names))])
    near = strangers.embeddings @ gallery.templates.T >= level
    matches = []
    for place, name in enumerate(strangers.names):
        similar = near[strangers.person == place].double()
        if len(similar) >= 3 and float(similar.mean(0).max()) >= 0.5:
            matches.append(f"{name} (as {gallery.names[int(similar.mean(0).argmax())]})")
    return matches


def _nearer(same: Tensor, cosine: Tensor, other: Tensor, gallery: Gallery) -> Tensor:
    """Return which photos of a person are at least as similar to another person.

    Args:
        same: cosines of the photos with the person's own template, see `left_out`; NaN for a single photo.
        cosine: their cosines with the other person's template.
        other: cosines of the other person's photos with that person's own template.
        gallery: gives the threshold.
    """
    if len(same) > 1:
        return cosine >= same
    return cosine >= (other.min() if len(other) > 1 else gallery.calibration.threshold)
