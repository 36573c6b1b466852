"""What a named experiment sets under a group, such as `loss: {positive_weight: balanced}`, is meant for one member of the group.

So that any other member can be chosen, an experiment is stored in parts: what it sets elsewhere, and for each of these groups a small
configuration for each member, with the keys that this member takes. Hydra picks the latter by the member that is chosen in the end (an
interpolation in its list of defaults), in a single run as in each job of a sweep. The member that the experiment means gets all keys, so
that a wrong one is an error. Another member gets those that it has, if their values are of its types.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString
from omegaconf import DictConfig, OmegaConf

from mtl.run.members import DEFAULTS, PARTIAL, WHOLE
from mtl.run.options import accepts, require_option

ROOM = "experiment_keys"  # under hydra/, as words of Hydra's are none of the run's
NOTHING = "nothing"


@dataclass(frozen=True)
class Part:
    """Keys of an experiment under one group.

    Attributes:
        member: of the group, for which the experiment has them.
        keys: with their values.
        defaults: members of groups inside, as in `/trunk@trunk.trunks.plain: small_cnn`.
    """

    member: str
    keys: dict[str, Any] = field(default_factory=dict)
    defaults: tuple[dict[str, str], ...] = ()

    def for_member(self, group: str, member: str) -> "Part":
        """What another member of the group takes of it."""
        if member == self.member:
            return self
        target = _target(group, member)
        return Part(member, {key: value for key, value in self.keys.items() if accepts(target, key, value)})

    def names(self) -> list[str]:
        """The keys, and the groups inside."""
        return [*self.keys, *(_package(entry) for entry in self.defaults)]


def member_words(words: Sequence[str]) -> list[str]:
    """Return the words that let Hydra add what the named experiments set under groups; `words` are of a command line."""
    return [
        f"+hydra/{ROOM}/{_code(name)}/{_code(place)}@_global_=${{{ROOM}:{_code(name)},{_code(place)}}}"
        for name in _named(words)
        for place in split_experiment(name)
    ]


def left_out(words: Sequence[str], choices: Mapping[str, Any]) -> list[str]:
    """Say which keys of the named experiments the chosen members do not take.

    Args:
        words: of one run.
        choices: the chosen member by group, as Hydra has it after composing.
    """
    sentences = []
    for name in _named(words):
        for place, parts in _parts(name).items():
            group, _, package = place.partition("@")
            member = choices.get(place)
            keys = [f"{package or group}.{key}" for part in parts for key in _missing(part, group, member)]
            if keys:
                why = f"{place}={member} does not take" if member else f"belongs to {place}, which is not there"
                sentences.append(f"experiment {name} sets {', '.join(dict.fromkeys(keys))}, which {why}: left out")
    return sentences


def experiment_values(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the options that the named experiments set, with their values as the files have them."""
    for name in _named(words):
        for part in (*_included(_whole(name)), name):
            yield from _leaves(OmegaConf.to_container(_whole(part)), "")


def split_experiment(name: str) -> list[str]:
    """Store an experiment of Hydra's store in parts, if it is not already; returns the groups under which it sets keys.

    Raises:
        ValueError: The experiment sets a key that its own member lacks.
    """
    places = _parts(name)
    if _code(name) in _room():
        return list(places)
    for place, parts in places.items():
        group, _, package = place.partition("@")
        for part in (part for part in parts if part.member in (WHOLE | PARTIAL)[group]):  # Hydra says which member is unknown
            for key in part.keys:
                require_option(_target(group, part.member), package or group, key)
    whole = _whole(name)
    for included in _included(whole):
        split_experiment(included)
    store = ConfigStore.instance().store
    # As a text, since Hydra copies its whole store whenever it composes, and nodes take long.
    store(group=f"hydra/{ROOM}/{_code(name)}", name="whole", node={"code": _whole_code(name)})
    for place, parts in places.items():
        group, _, package = place.partition("@")
        room = f"hydra/{ROOM}/{_code(name)}/{_code(place)}"
        store(group=room, name=NOTHING, node={}, package="_global_")
        for variant, taken in {_variant_name(taken): taken for taken in _taken(place, parts)}.items():
            node = OmegaConf.create()
            for part in taken:
                OmegaConf.update(node, package or group, part.keys, merge=True)
            if inside := [dict(entry) for part in taken for entry in part.defaults]:
                node.defaults = [*inside, "_self_"]
            store(group=room, name=variant, node=node, package="_global_")
    rest = whole.copy()
    inside = [dict(entry) for parts in places.values() for part in parts for entry in part.defaults]
    if "defaults" in rest:
        rest.defaults = [entry for entry in rest.defaults if entry not in inside]
    for group in [group for group in rest if group in DEFAULTS and isinstance(rest[group], DictConfig)]:
        del rest[group]
    store(group="experiment", name=name, node=rest, package="_global_")
    return list(places)


def join_experiments() -> list[str]:
    """Undo `split_experiment` for all; returns their names."""
    names = [_text(code) for code in _room()]
    for name in names:
        ConfigStore.instance().store(group="experiment", name=name, node=_whole(name).copy(), package="_global_")
    _room().clear()
    return names


def _parts(name: str) -> dict[str, list[Part]]:
    """What an experiment, and those that it includes, set under each group; a group inside of another is named as Hydra names it."""
    return _parts_of(tuple(map(_whole_code, (*_included(_whole(name)), name))))


@functools.cache
def _parts_of(codes: tuple[str, ...]) -> dict[str, list[Part]]:
    parts, said = dict[str, list[Part]](), dict[str, str]()
    for code in codes:
        _add_parts(_parse(code), parts, said)
    return parts


def _add_parts(whole: DictConfig, parts: dict[str, list[Part]], said: dict[str, str]) -> None:
    """Add the parts of one file to `parts`, and the members that it names to `said`."""
    said |= {key.removeprefix("override /"): member for key, member in _entries(whole) if key.startswith("override /")}
    for group, default in DEFAULTS.items():
        keys: Any = OmegaConf.to_container(whole[group]) if isinstance(whole.get(group), DictConfig) else {}
        inside = tuple({key: member} for key, member in _entries(whole) if _package({key: member}).startswith(f"{group}."))
        if not keys and not inside:
            continue
        member = said.get(group, default)
        for place, inner_member, inner_keys in _inner(group, member, keys):
            parts.setdefault(place, []).append(Part(said.get(place, inner_member), inner_keys))
        parts.setdefault(group, []).append(Part(member, keys, inside))


def _inner(group: str, member: str, keys: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Take out of `keys` what belongs to groups inside of a member, as `loss@loss.classes` of loss=by_kind; yields it."""
    if member not in (WHOLE | PARTIAL)[group]:
        return  # Hydra says so
    for key, inner_member in _entries(_node(f"{group}/{member}")):
        inner_group, _, package = key.lstrip("/").partition("@")
        if isinstance(keys.get(package), dict):
            yield f"{inner_group}@{group}.{package}", inner_member, keys.pop(package)


def _taken(place: str, parts: Sequence[Part]) -> Iterator[list[Part]]:
    """What each member of a group takes."""
    group = place.partition("@")[0]
    for member in (WHOLE | PARTIAL)[group]:
        yield [part.for_member(group, member) for part in parts]


def _variant_name(taken: Sequence[Part]) -> str:
    return _code(";".join(",".join(part.names()) for part in taken))


def _missing(part: Part, group: str, member: Any) -> list[str]:
    taken = part.for_member(group, str(member)).names() if member else []
    return [key for key in part.names() if key not in taken]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, part in value.items():
        yield from _leaves(part, f"{path}.{key}" if path else str(key))


def _entries(node: DictConfig) -> list[tuple[str, str]]:
    """The list of defaults, of groups with their members."""
    return [
        (str(key), str(member))
        for entry in node.get("defaults", ())
        if isinstance(entry, DictConfig)
        for key, member in entry.items()
    ]


def _included(node: DictConfig) -> list[str]:
    """Other experiments in the list of defaults, and those that they include."""
    entries = [str(entry).removeprefix("/experiment/") for entry in node.get("defaults", ()) if isinstance(entry, str)]
    return [name for entry in entries if entry in _names() for name in (*_included(_whole(entry)), entry)]


def _package(entry: Mapping[str, str]) -> str:
    return next(iter(entry)).partition("@")[2]


def _names() -> list[str]:
    return [file.removesuffix(".yaml") for file in ConfigStore.instance().repo.get("experiment", ())]


def _named(words: Sequence[str]) -> list[str]:
    """The experiments that words name, also those of a sweep."""
    names: list[str] = []
    parser = OverridesParser.create()
    for word in words:
        if word.lstrip("+").startswith("experiment="):
            value: Any = parser.parse_override(word).value()
            values: list[Any]
            match value:
                case ChoiceSweep():
                    values = value.list
                case Glob():
                    values = value.filter(_names())
                case _:
                    values = [value]
            names += [one.text if isinstance(one, QuotedString) else str(one) for one in _flat(values)]
    return [name for name in dict.fromkeys(names) if name in _names()]


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Names, one by one, of which several may stand in a list."""
    for value in values:
        yield from value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _whole(name: str) -> DictConfig:
    """An experiment as its file has it."""
    return _parse(_whole_code(name))


def _whole_code(name: str) -> str:
    if _code(name) in _room():
        return str(_node(f"hydra/{ROOM}/{_code(name)}/whole").code)
    return _code(OmegaConf.to_yaml(_node(f"experiment/{name}")))


@functools.cache
def _parse(code: str) -> DictConfig:
    node = OmegaConf.create(_text(code))
    assert isinstance(node, DictConfig)
    return node


def _node(path: str) -> DictConfig:
    return ConfigStore.instance().load(f"{path}.yaml").node


def _target(group: str, member: str) -> str:
    return str(_node(f"{group}/{member}")["_target_"])


def _room() -> dict[str, Any]:
    """Where the store has the parts of experiments, by code."""
    room: dict[str, Any] = ConfigStore.instance().repo.setdefault("hydra", {}).setdefault(ROOM, {})
    return room


def _code(text: str) -> str:
    """A text in letters that Hydra's grammar takes."""
    return f"x{text.encode().hex()}"


def _text(code: str) -> str:
    return bytes.fromhex(code[1:]).decode()


def _variant(name: str, place: str, *, _root_: DictConfig) -> str:
    """Hydra asks for it with the choices of all groups."""
    group, member = _text(place).partition("@")[0], _root_.get(_text(place))
    chosen = _flat(entry.experiment for entry in _root_.defaults if isinstance(entry, DictConfig) and "experiment" in entry)
    if not member or _text(name) not in chosen:
        return NOTHING
    return _variant_name([part.for_member(group, str(member)) for part in _parts(_text(name))[_text(place)]])


OmegaConf.register_new_resolver(ROOM, _variant, replace=True)
