"""`mtl train --help`: what can be chosen and set, read from the docstrings and signatures of what a configuration builds.

A docstring begins with a sentence that serves as the line of a member. Its section `Args:` describes the options.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from mtl.cli.meanings import GROUPS, KEYS, PRESETS
from mtl.run.config import WORDS
from mtl.run.members import DEFAULTS, PARTIAL, WHOLE
from mtl.run.named_experiments import experiment_files, experiments_folder, listing
from mtl.run.options import nearest, type_in_words
from mtl.run.settings import OPTIONS, top_level

WIDTH = 140
USAGE = """\
mtl train [GROUP=MEMBER] [KEY=VALUE] ...      train one run
mtl train -m GROUP=MEMBER,MEMBER KEY=VALUE,VALUE ...
                                              a sweep: every combination, one run directory each; with --dry-run its jobs
mtl train +experiment=NAME ...                start from a named experiment; mtl experiments lists them
mtl train --cfg job ...                       print the configuration and do not train

mtl train --help GROUP                        the members of a group, for instance --help balancer
mtl train --help GROUP=MEMBER                 one member with its options, for instance --help balancer=cagrad
mtl train --help KEY                          one key, for instance --help engine
"""
GROUPS_TITLE = "GROUPS: GROUP=MEMBER chooses a member; * is the default.\n"
KEYS_TITLE = """\
KEYS: KEY=VALUE sets a key; below are the defaults. The options of a chosen member are keys too, such as
client.learning_rate=0.01; mtl train --help GROUP=MEMBER lists them.
"""
KINDS = {"Any": "any value", "Balancer": "a member of balancer", "ImageData": "a member of data"}
COLUMN = 40  # where meanings begin
IDEA = 3  # members of a group in one module, up to which the module's docstring is about each of them
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):\n((?:(?:[ \t].*)?(?:\n|\Z))*)", re.MULTILINE)
ARGUMENT = re.compile(r"^    (\w+):(.*(?:\n {8}.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """One option: its full name, its type in words, its default as one would type it, and what it means (may be empty)."""

    name: str
    kind: str
    default: str
    meaning: str


def summary(doc: str | None) -> str:
    """The first sentence of a docstring, on one line; empty where there is no docstring."""
    paragraph = " ".join(inspect.cleandoc(doc or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`\"(<])", paragraph)[0]


def meanings(doc: str | None, names: Iterable[str]) -> dict[str, str]:
    """What the section `Args` of a docstring says of each of `names`; those that it does not describe are left out."""
    known = set(names)
    sections = SECTION.findall(inspect.cleandoc(doc or ""))
    arguments = "".join(body for title, body in sections if title == "Args")
    return {name: _one_line(meaning) for name, meaning in ARGUMENT.findall(arguments) if name in known}


def prose(doc: str | None) -> str:
    """A docstring without its sections, and without sentences that begin with Raises."""
    text = SECTION.sub("", inspect.cleandoc(doc or ""))
    paragraphs = (re.split(r"(?:^|\s)Raises\b", paragraph)[0].strip("\n") for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip())


def _one_line(meaning: str) -> str:
    return " ".join(meaning.split()).rstrip(";. ")


def shown(value: Any) -> str:
    """A default as one would type it."""
    if value == "???":
        return "... (must be given)"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{shown(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(shown, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def members(group: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """What each member of a group builds, and the settings by which it departs from the signature of that."""
    entries = (WHOLE if group in WHOLE else PARTIAL)[group]
    return {name: (member[0], member[1]) if isinstance(member, tuple) else (member, {}) for name, member in entries.items()}


def member_line(group: str, name: str) -> str:
    """What a member is, in one line."""
    return PRESETS.get(group, {}).get(name) or summary(_written_doc(members(group)[name][0]))


def member_options(group: str, name: str) -> list[Option]:
    """The options of a member, in the order of the signature of what it builds."""
    target, changed = members(group)[name]
    return _options(target, changed, f"{group}.", partial=group in PARTIAL)


def key_options(key: str) -> list[Option]:
    """A key at the top; where it is a group of options without members, these."""
    if key in OPTIONS:
        return _options(OPTIONS[key], {}, f"{key}.")
    field = next(field for field in fields(top_level()) if field.name == key)
    kind = type_in_words(str | None if key in WORDS else field.type)
    return [Option(key, kind, shown(field.default), KEYS[key])]


def _options(target: Any, changed: Mapping[str, Any], prefix: str, *, partial: bool = False) -> list[Option]:
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    parameters = inspect.signature(target).parameters.values()
    options, described, chosen = [], _described(target), _chosen(changed)
    for parameter in parameters:
        name, required = parameter.name, parameter.default is inspect.Parameter.empty
        if name in changed.get("zen_exclude", ()) or (partial and required and name not in changed):
            continue
        value = changed.get(name, "???" if required else _default(target, parameter))
        if isinstance(value, str) and value.startswith("${"):
            continue  # another key says it
        kind, default, meaning = _kind(hints.get(name, Any)), shown(value), described.get(name, "")
        if name in chosen:
            group, default = chosen[name]
            kind = f"a member of {group}"
            meaning += f"; {group}@{prefix}{name}=NAME takes another one"
        options.append(Option(prefix + name, kind, default, meaning))
    return options


def _kind(hint: Any) -> str:
    """A type in words, also where it is one of ours."""
    return re.sub(r"\b(Any|Balancer|ImageData)\b", lambda match: KINDS[match[1]], type_in_words(hint))


def _chosen(changed: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The options that take a member of another group: that group, and the member."""
    entries = (entry for part in changed.get("hydra_defaults", ()) if isinstance(part, Mapping) for entry in part.items())
    return {where.partition("@")[2]: (where.partition("@")[0].strip("/"), member) for where, member in entries}


def _default(target: Any, parameter: inspect.Parameter) -> Any:
    """The default of a parameter, made where a dataclass makes it anew for each object."""
    for field in fields(target) if is_dataclass(target) else ():
        if field.name == parameter.name and callable(field.default_factory):
            return field.default_factory()
    return parameter.default


def _described(target: Any) -> dict[str, str]:
    """What the docstrings of a target, and of what it inherits from, say of its options."""
    names = list(inspect.signature(target).parameters)
    described: dict[str, str] = {}
    for part in reversed(inspect.getmro(target)) if inspect.isclass(target) else (target,):
        for doc in (
            part.__doc__,
            vars(part).get("__init__").__doc__ if inspect.isclass(part) and "__init__" in vars(part) else None,
        ):
            described |= meanings(doc, names)
    return {name: re.sub(r"\bNone\b", "null", meaning) for name, meaning in described.items()}


def _written_doc(target: Any) -> str | None:
    """A docstring that somebody wrote: a dataclass without one has its signature."""
    doc: str | None = target.__doc__
    return None if doc is None or doc.startswith(f"{target.__name__}(") else doc


def help_text(topics: Sequence[str] = ()) -> str:
    """The help of each topic, or of everything where there is none. Raises ValueError for a word that is no group, member or key."""
    return "\n".join(_page(topic) for topic in topics) if topics else overview()


def overview() -> str:
    """All groups with their members, and all keys."""
    groups = [group_page(group) for group in DEFAULTS]
    plain = [option for key in KEYS if key not in OPTIONS for option in key_options(key)]
    keys = [f"{key}: {KEYS[key]}\n{_columns(key_options(key))}" for key in OPTIONS]
    return "\n".join([USAGE, GROUPS_TITLE, *groups, KEYS_TITLE, _columns(plain), *keys])


def group_page(group: str) -> str:
    """The members of a group, with a line each."""
    names = members(group)
    width = max(map(len, names)) + 2
    lines = [f"{group}: {GROUPS[group]}"]
    for name in names:
        lines += _hanging(f"{'*' if name == DEFAULTS[group] else ' '} {name:<{width}} ", member_line(group, name))
    return "\n".join(lines) + "\n"


def member_page(group: str, name: str) -> str:
    """A member in full."""
    target, _ = members(group)[name]
    options, line = member_options(group, name), member_line(group, name)
    rest = _without(prose(_written_doc(target)), line)
    text = "\n\n".join(part for part in (f"{group}={name}", line, rest, _idea(group, target)) if part)
    return f"{text}\n\n{_list(options)}" if options else f"{text}\n\nIt has no options.\n"


def _without(text: str, line: str) -> str:
    """A docstring without the sentence that stands above it already."""
    first, _, rest = text.partition("\n\n")
    flat = " ".join(first.split())
    if not flat.startswith(line):
        return text
    left = "\n".join(textwrap.wrap(flat.removeprefix(line).strip(), WIDTH))
    return "\n\n".join(part for part in (left, rest) if part)


def _idea(group: str, target: Any) -> str:
    """The docstring of a member's module, where that says more than a sentence and is about few members: the equation and its source."""
    near = {part for part, _ in members(group).values() if part.__module__ == target.__module__}
    doc = inspect.cleandoc(sys.modules[target.__module__].__doc__ or "")
    return f"From {target.__module__}:\n\n{doc}" if len(near) <= IDEA and "\n\n" in doc else ""


def _columns(options: Sequence[Option]) -> str:
    """Options with their defaults on the left, and what they mean on the right."""
    lines = []
    for option in options:
        start = f"  {option.name}={option.default}"
        if len(start) >= COLUMN:
            lines.append(start)
            start = ""
        lines += _hanging(f"{start:<{COLUMN}}", option.meaning)
    return "\n".join(lines) + "\n"


def _list(options: Sequence[Option]) -> str:
    """Options with their defaults and types, and what they mean below."""
    lines = []
    for option in options:
        lines += [f"  {option.name}={option.default}   ({option.kind})", *_hanging(" " * 6, option.meaning)]
    return "\n".join(lines) + "\n"


def _hanging(start: str, text: str) -> list[str]:
    """`text` behind `start`, in lines of WIDTH at most that begin where the text does."""
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False) or [
        start.rstrip()
    ]


def _page(topic: str) -> str:
    """What is said of a word as one types it: GROUP, GROUP=MEMBER, KEY, KEY=VALUE, or the name of an option of one of them."""
    name, _, value = topic.lstrip("+~").partition("=")
    word = name.partition("@")[0].partition(".")[0]
    if word == "experiment":
        return listing(experiment_files(experiments_folder()))
    if name in DEFAULTS and value:
        names = members(name)
        if value not in names:
            raise ValueError(f"{name} has no member {value!r}{nearest(value, names)}; choose from {', '.join(names)}")
        return member_page(name, value)
    if word in DEFAULTS:
        return f"{group_page(word)}\nmtl train --help {word}=MEMBER shows the options of a member.\n"
    if word in KEYS:
        title = f"{word}: {KEYS[word]}\n" if word in OPTIONS else ""
        return title + _list(key_options(word))
    known = [*DEFAULTS, *KEYS, "experiment"]
    raise ValueError(f"no group or key {word!r}{nearest(word, known)}; groups: {', '.join(DEFAULTS)}; keys: {', '.join(KEYS)}")
