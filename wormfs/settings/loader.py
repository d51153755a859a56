"""A loader from YAML, environment and flags into frozen dataclasses, with every problem named.

A schema is a dataclass whose fields are made by `setting(kind, ...)` or `section(Schema)`.
Later sources win: defaults, file, environment, flags. All problems of all sources are collected
and raised as one ConfigError, a line each: where (file:line, variable or flag), what, and what
was expected. A field's key is its name without `_bytes` or `_s`: the value carries its own unit.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from wormfs.core.errors import ConfigError
from wormfs.settings.kinds import Kind

Schema = TypeVar("Schema")
_KIND = "wormfs.kind"
_REQUIRED = "wormfs.required"
_SECTION = "wormfs.section"


def setting(kind: Kind, *, default: Any = MISSING, required: bool = False) -> Any:
    """A field of a schema. Without `default` it must be given; `required` demands it be not empty."""
    metadata = {_KIND: kind, _REQUIRED: required or default is MISSING}
    return field(default=() if kind.many and default is MISSING else default, metadata=metadata)


def section(schema: type[Any]) -> Any:
    """A field that is a nested mapping, itself a schema whose fields all have defaults."""
    return field(default_factory=schema, metadata={_SECTION: schema})


@dataclass(frozen=True, slots=True)
class Override:
    """A value from a flag: `path` names the setting, `source` the flag, as in `--listen`."""

    path: tuple[str, ...]
    value: object
    source: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A value with where it came from."""

    value: object
    where: str


class _Sources:
    """What the sources gave, by dotted path, and what was wrong with it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: dict[tuple[str, ...], _Found] = {}
        self.lines: dict[tuple[str, ...], int] = {}  # of sections
        self.problems: list[str] = []

    def problem(self, where: str, what: str) -> None:
        self.problems.append(f"{where}: {what}")

    def place(self, path: tuple[str, ...]) -> str:
        """Where the section `path` stands."""
        line = self.lines.get(path)
        return (f"{self.file}:{line}" if line else self.file) or "settings"


def load(
    schema: type[Schema],
    *,
    file: Path | None,
    environment: Mapping[str, str] | None = None,
    prefix: str = "",
    strict_environment: bool = True,
    overrides: Iterable[Override] = (),
) -> Schema:
    """Read a schema from a YAML file (None: no file), variables that begin with `prefix`, and flags.

    A setting `policy: {k: 4}` is the variable PREFIX + `POLICY_K`. With `strict_environment` an
    unknown variable with the prefix is a problem. Raises ConfigError, one line for each problem.
    """
    sources = _Sources(str(file) if file else "")
    kinds = dict(_leaves(schema, ()))
    if file is not None:
        root = _compose(file, sources)
        if sources.problems:
            raise ConfigError("\n".join(sources.problems))  # what it should say is beside the point
        if root is not None:
            _walk(root, schema, (), sources)
    if prefix:
        _read_environment(kinds, environment or {}, prefix, sources, strict=strict_environment)
    for override in overrides:
        value = override.value
        if override.path not in kinds:
            name = _dotted(override.path)
            sources.problem(override.source, f"unknown setting {name}{_suggest(name, map(_dotted, kinds))}")
            continue
        if kinds[override.path].many and isinstance(value, str):
            value = _comma_list(value)
        sources.found[override.path] = _Found(value, override.source)
    made = _build(schema, (), sources)
    if made is None or sources.problems:
        raise ConfigError("\n".join(sources.problems))
    return made


def key_of(name: str) -> str:
    """The key in YAML of a schema's field `name`."""
    return name.removesuffix("_bytes").removesuffix("_s")


def _comma_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _leaves(schema: type[Any], path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Kind]]:
    for item in dataclasses.fields(schema):
        if _SECTION in item.metadata:
            yield from _leaves(item.metadata[_SECTION], (*path, key_of(item.name)))
        else:
            yield (*path, key_of(item.name)), item.metadata[_KIND]


def _compose(file: Path, sources: _Sources) -> yaml.Node | None:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        sources.problem(str(file), f"cannot be read: {error.strerror}; name another with --config")
        return None
    except UnicodeDecodeError as error:
        sources.problem(str(file), f"is not UTF-8 text (byte {error.start})")
        return None
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        sources.problem(f"{file}:{line}", f"is not valid YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        sources.problem(str(file), f"is not valid YAML: {' '.join(str(error).split())}")
    return None


def _walk(node: yaml.Node, schema: type[Any], path: tuple[str, ...], sources: _Sources) -> None:
    file = sources.file
    where = f"{file}:{node.start_mark.line + 1}"
    fields = {key_of(item.name): item for item in dataclasses.fields(schema)}
    if not isinstance(node, yaml.MappingNode):
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return
        sources.problem(where, f"{_name(path)}expected a mapping with some of {', '.join(sorted(fields))}")
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        here = f"{file}:{line}"
        if key in seen:
            sources.problem(here, f"{_dotted((*path, key))} is given twice, first in line {seen[key]}")
            continue
        seen[key] = line
        item = fields.get(key)
        if item is None:
            sources.problem(here, f"unknown key {_dotted((*path, key))}{_suggest(key, fields)}")
        elif _SECTION in item.metadata:
            sources.lines[(*path, key)] = line
            _walk(value_node, item.metadata[_SECTION], (*path, key), sources)
        else:
            try:
                sources.found[(*path, key)] = _Found(_construct(value_node), here)
            except yaml.YAMLError:
                sources.problem(here, f"{_dotted((*path, key))}: expected {item.metadata[_KIND].expected}")


def _construct(node: yaml.Node) -> object:
    loader = yaml.SafeLoader("")
    try:
        value: object = loader.construct_document(node)
    except ValueError as error:  # such as the date 2024-13-45
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()
    return value


def _suggest(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known keys: {', '.join(names)}"


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)


def _name(path: tuple[str, ...]) -> str:
    return f"{_dotted(path)}: " if path else ""


def _read_environment(
    kinds: dict[tuple[str, ...], Kind],
    environment: Mapping[str, str],
    prefix: str,
    sources: _Sources,
    *,
    strict: bool,
) -> None:
    variables = {prefix + "_".join(path).upper(): path for path in kinds}
    for variable in sorted(environment):
        if not variable.startswith(prefix):
            continue
        path = variables.get(variable)
        if path is not None:
            text = environment[variable]
            sources.found[path] = _Found(
                _comma_list(text) if kinds[path].many else text, f"environment {variable}"
            )
        elif strict:
            near = difflib.get_close_matches(variable, variables, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            sources.problem(f"environment {variable}", f"names no setting{hint}")


def _build(schema: type[Schema], path: tuple[str, ...], sources: _Sources) -> Schema | None:
    values: dict[str, Any] = {}
    sound = True
    for item in dataclasses.fields(schema):  # type: ignore[arg-type]
        here = (*path, key_of(item.name))
        if _SECTION in item.metadata:
            values[item.name] = _build(item.metadata[_SECTION], here, sources)
            sound = sound and values[item.name] is not None
            continue
        kind: Kind = item.metadata[_KIND]
        given = sources.found.get(here)
        if given is None or (given.value is None and not item.metadata[_REQUIRED]):
            if item.metadata[_REQUIRED]:
                sources.problem(sources.place(path), f"{_dotted(here)} is missing; expected {kind.expected}")
                sound = False
            continue
        try:
            values[item.name] = kind.parse(given.value)
        except (ValueError, TypeError) as error:
            why = f" ({error})" if str(error) and not str(error).startswith("invalid literal") else ""
            shown = "nothing" if given.value is None else repr(given.value)
            sources.problem(given.where, f"{_dotted(here)}: expected {kind.expected}, not {shown}{why}")
            sound = False
        else:
            if item.metadata[_REQUIRED] and kind.many and not values[item.name]:
                sources.problem(given.where, f"{_dotted(here)}: expected {kind.expected}, not an empty one")
                sound = False
    if not sound:
        return None
    try:
        return schema(**values)
    except ConfigError as error:  # a rule over several settings, raised by __post_init__
        keys = [(*path, key_of(name)) for name in values]
        places = [sources.found[key].where for key in keys if key in sources.found]
        where = places[0] if places and path not in sources.lines else sources.place(path)
        sources.problem(where, f"{_name(path)}{error.message}")
        return None
