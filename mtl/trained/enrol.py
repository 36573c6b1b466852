"""Make galleries from folders of photos; add, remove and list their people."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.errors import HydraException
from hydra_zen import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mtl.base.files import write_json
from mtl.base.seeding import generator
from mtl.data.images import DataNotFound, list_folders, list_images
from mtl.data.transforms import to_float
from mtl.faces.calibration import Strangers, check_threshold
from mtl.faces.doubles import find_doubles, find_enrolled_strangers
from mtl.faces.gallery import Gallery, Photos, make_gallery
from mtl.faces.photos import Photo, UnreadablePhoto
from mtl.run.build import read_config
from mtl.trained.recognise import Recogniser, progress, warn

MOST_STRANGERS = 2000  # faces
MOST_DOUBLES = 5  # that are named


def enrol(
    folder: Path,
    run: Path,
    output: Path,
    *,
    threshold: float | None = None,
    strangers: Path | None = None,
    data_root: str | None = None,
    not_strangers: Sequence[str] = (),
    force: bool = False,
) -> Gallery:
    """Write a gallery of `folder`, which has a folder of photos for each person.

    A photo that cannot be used, and a person without any, is named and left out.

    Args:
        folder: the people.
        run: a run of mode=detection.
        output: the gallery.
        threshold: minimum cosine similarity to accept a match, in (-1, 1); None to calibrate it.
        strangers: a folder like `folder` of people who are not enrolled; None for the people that the run was trained on.
        data_root: folder of the run's data, None for where they were when it was trained.
        not_strangers: people of the run's data who are enrolled under another name.
        force: overwrite a gallery.

    Raises:
        ValueError: nobody is left, a gallery would be overwritten, one picture has two names, or the threshold is not in (-1, 1).
    """
    check_threshold(threshold)
    if output.exists() and not force:
        raise ValueError(f"--output must not exist, got {output}; --add adds people to it, --force writes over it")
    _check_folder("--gallery", folder)
    model, console = Recogniser.load(run), Console(stderr=True)
    people = read_people("--gallery", folder, model, console)
    unenrolled = _strangers(model, strangers, data_root, not_strangers, console)
    gallery = make_gallery(
        people, strangers=unenrolled, threshold=threshold, model=model.finder.fingerprint(), run=str(run.resolve())
    )
    _finish(gallery, output, console)
    return gallery


def add_people(folder: Path, output: Path, *, run: Path | None = None, threshold: float | None = None) -> Gallery:
    """Add the people of `folder` to the gallery `output`, and calibrate it again.

    Args:
        folder: the people, as in `enrol`.
        output: the gallery.
        run: None for the run that the gallery was made with.
        threshold: as in `enrol`.

    Raises:
        ValueError: as in `enrol`; or one of the people is enrolled already, or the gallery is of another model.
    """
    check_threshold(threshold)
    before = Gallery.load(output)
    _check_folder("--gallery", folder)
    model, console = Recogniser.load(run or Path(before.run)), Console(stderr=True)
    model.check(before, output)
    gallery = before.add(read_people("--gallery", folder, model, console), threshold=threshold)
    _finish(gallery, output, console)
    return gallery


def remove_people(names: Sequence[str], output: Path, *, threshold: float | None = None) -> Gallery:
    """Take people and their embeddings out of the gallery `output`, and calibrate it again.

    Raises:
        ValueError: the gallery lacks one of the names.
    """
    check_threshold(threshold)
    gallery = Gallery.load(output).remove(names, threshold=threshold)
    _finish(gallery, output, Console(stderr=True))
    return gallery


def people_table(gallery: Gallery) -> Table:
    """Make the table of a gallery's people for the terminal."""
    table = Table("Person", "Photos", "Files")
    for photos in gallery.people:
        table.add_row(escape(photos.name), str(len(photos.files)), escape(", ".join(photos.files)))
    return table


def read_people(option: str, folder: Path, model: Recogniser, console: Console, max_side: int = 640) -> list[Photos]:
    """Read a folder of folders, and embed the largest face of each photo.

    A photo that cannot be used, and a person without any, is named and left out.

    Args:
        option: what the user calls the folder.
        folder: one folder of photos for each person.
        model: finds and embeds the faces.
        console: for progress and warnings.
        max_side: longest side, in pixels, that a photo is reduced to.

    Raises:
        ValueError: nobody is left.
    """
    people: list[Photos] = []
    without: list[str] = []
    folders = list_folders(folder)
    for person in progress(folders, "enrolling", console):
        rows: dict[str, tuple[str, Tensor]] = {}
        for path in list_images(person):
            try:
                photo = model.read(path, max_side)
            except UnreadablePhoto as error:
                warn(console, f"{error}; it is left out")
                continue
            digest = _digest(photo)
            if digest in rows:
                warn(console, f"{path} is the same picture as {rows[digest][0]}; it is left out")
                continue
            embedding = model.portrait(photo)
            if embedding is None:
                warn(console, f"no face found in {path}; it is left out")
                continue
            rows[digest] = (str(path.relative_to(folder)), embedding.clone())
        if rows:
            files, embeddings = zip(*rows.values(), strict=True)
            people.append(Photos(person.name, files, torch.cat(embeddings), tuple(rows)))
        else:
            without.append(person.name)
    if not people:
        raise ValueError(f"{option} must hold a photo with a face that the model finds, got none in {len(folders)} people")
    if without:
        warn(console, f"not enrolled, for want of a photo with a face: {', '.join(without)}")
    return people


def run_strangers(model: Recogniser, data_root: str | None, not_strangers: Sequence[str]) -> Strangers | None:
    """Embed faces of the people that a run was trained on, on pictures that it did not train on where there are any.

    Args:
        model: a run's.
        data_root: folder of the run's data, None for where they were when it was trained.
        not_strangers: names of people to leave out.

    Returns:
        None where the run's data name nobody.

    Raises:
        DataNotFound: the data are not there; it is a ValueError.
        ValueError: the data cannot be used, or lack one of the names.
    """
    config = read_config(model.run)
    for option in ("data.root", "scenes.root"):
        if data_root is not None and OmegaConf.select(config, option) is not None:
            OmegaConf.update(config, option, data_root)
    try:
        data = instantiate(config.data)
    except HydraException as error:  # around the error of what was to be built
        if isinstance(error.__cause__, DataNotFound):
            raise error.__cause__ from error
        raise ValueError(str(error.__cause__ or error)) from error
    unknown = [name for name in not_strangers if name not in data.class_names]
    if unknown:
        raise ValueError(f"--not-strangers must name people of the run's data, got {', '.join(unknown)}")
    split = instantiate(config.split)(data, config.seed)
    unseen = torch.cat([split.val, split.test])
    index = next((part for part in (unseen, split.train) if bool((data.classes[part] >= 0).any())), None)
    if index is None:
        return None
    index = index[data.classes[index] >= 0]
    index = index[torch.randperm(len(index), generator=generator(0, "strangers"))[:MOST_STRANGERS]]
    people, person = data.classes[index].unique(return_inverse=True)
    with torch.inference_mode():
        embeddings = torch.cat([model.finder.embed(to_float(data.images[some])) for some in index.split(64)]).clone()
    names = tuple(data.class_names[p] for p in people.tolist())
    strangers = Strangers(embeddings, person, names, False, f"people of {data.name}, which the run was trained on")
    return strangers.without(set(not_strangers))


def _strangers(
    model: Recogniser, folder: Path | None, data_root: str | None, not_strangers: Sequence[str], console: Console
) -> Strangers | None:
    if folder is not None:
        _check_folder("--strangers", folder)
        people = read_people("--strangers", folder, model, console)
        person = torch.arange(len(people)).repeat_interleave(torch.tensor([len(photos.files) for photos in people]))
        embeddings, names = torch.cat([photos.embeddings for photos in people]), tuple(photos.name for photos in people)
        return Strangers(embeddings, person, names, True, f"photos in {folder}")
    alone = "the gallery's own people, left out in turn, stand for strangers; --strangers DIR gives better ones"
    try:
        strangers = run_strangers(model, data_root, not_strangers)
    except DataNotFound as error:
        warn(console, f"the people that the run was trained on are not at hand ({error}); {alone}, or --data-root")
        return None
    if strangers is None:
        warn(console, f"the data of {model.run} name nobody; {alone}")
    return strangers


def _finish(gallery: Gallery, output: Path, console: Console) -> None:
    """Write the gallery, and a JSON of who is in it and what its threshold promises."""
    doubles = find_doubles(gallery)
    for double in doubles[:MOST_DOUBLES]:
        warn(console, double)
    if len(doubles) > MOST_DOUBLES:
        warn(console, f"and {len(doubles) - MOST_DOUBLES} more such pairs: the model hardly tells these people apart")
    alike = find_enrolled_strangers(gallery)
    if alike:
        more = ", ..." * (len(alike) > 3)
        warn(
            console,
            f"strangers that look enrolled: {', '.join(alike[:3])}{more}; if they are, the threshold is too high: say --not-strangers NAME",
        )
    calibration = gallery.calibration
    if calibration.kept is not None and calibration.kept.value == 0:
        warn(console, "no photo left out of the gallery is known again: the model cannot tell these people")
    gallery.save(output)
    people = {photos.name: list(photos.files) for photos in gallery.people}
    content = {"people": people, "calibration": calibration.plain(), "model": gallery.model, "run": gallery.run}
    write_json(output.with_suffix(".json"), content)
    console.print(f"{len(gallery.names)} people, {len(gallery.files)} photos; {calibration}", highlight=False, soft_wrap=True)


def _check_folder(option: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{option} must be a folder with a folder of photos for each person, got {folder}, no such folder")
    if not any(list_images(person) for person in list_folders(folder)):
        raise ValueError(f"{option} must be a folder with a folder of photos for each person, got {folder} with none")


def _digest(photo: Photo) -> str:
    """Digest of the pixels, whatever the kind of file."""
    shape = repr(tuple(photo.image.shape)).encode()
    return hashlib.blake2b(shape + photo.image.contiguous().numpy().tobytes(), digest_size=12).hexdigest()
