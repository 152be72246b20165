"""What there is, from ``conf/`` and the classes it names: ``python -m backdoor_bench.catalog defenses --format json``.

No list of methods is kept anywhere. Defaults are those that Hydra composes, notes are the YAML's own comments, the
source is its first comment. Classes are read, not imported: torch would take seconds, and no data set is needed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backdoor_bench import config as configuration
from backdoor_bench import progress
from backdoor_bench.errors import BenchError, ConfigError, StoreError

GROUPS = {"attacks": "attack", "defenses": "defense", "stages": "stage", "datasets": "dataset", "models": "model"}
"""What a person asks for, and the configuration's group."""
TITLES = {"attacks": "Attacks", "defenses": "Defenses", "stages": "Stages of defenses", "datasets": "Data sets",
          "models": "Networks"}  # fmt: skip
CHOICE = {"attack": "+attack={}", "defense": "+defense={}", "stage": "stage@defense.stages.NAME={}",
          "dataset": "dataset={}", "model": "model={}"}  # fmt: skip
FORMATS = ("terminal", "markdown", "json")
FACTS = ("assumes", "requires", "instead")
_HIDDEN = {"_target_", "_partial_", "name", *FACTS}
_LENGTH = re.compile(r"\$\{length:\s*\w+\s*,\s*([^}]*)\}")


@dataclass(frozen=True)
class Option:
    """One hyper-parameter: its name as on the command line below the entry, its default, the YAML's comment."""

    name: str
    default: Any
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """One method, data set or network.

    Args:
        name: as on the command line.
        choose: the override that chooses it.
        source: the comment at the top of its YAML: the paper, and what is not as published.
        summary: first line of the class's docstring, or of its module's.
        code: where the class is, as ``backdoor_bench.attack.wanet.WaNet``.
        facts: taxonomy of an attack; assumes, requires and instead of a defense; takes and gives of a stage.
        stages: of a defense: name to leaf of ``conf/stage``.
        options: in the YAML's order. A length that presets and recipes may shorten has its published value.
    """

    name: str
    choose: str
    source: str
    summary: str
    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[Option] = ()


def entries(what: str) -> list[Entry]:
    """All entries of a kind, a key of :data:`GROUPS`, by name."""
    folder = configuration.directory() / GROUPS[what]
    with hydra.initialize_config_dir(str(folder.parent), version_base="1.3"):
        return [_entry(path) for path in sorted(folder.glob("*.yaml"))]


def _entry(path: Path) -> Entry:
    group = path.parent.name
    composed = OmegaConf.to_container(hydra.compose(f"{group}/{path.stem}"), resolve=False)
    assert isinstance(composed, dict)
    node, notes = composed[group], dict(_notes(path))
    target = str(node["_target_"])
    options = [Option(name, _shown(value), notes.get(name, "")) for name, value in _flat(node)]
    options.sort(key=lambda option: option.name.startswith("stages."))  # a defense's own first
    steps = _stages(path)
    summary = "" if target == "backdoor_bench.defense.Defense" else _summary(target)  # its stages say what it does
    return Entry(
        path.stem, CHOICE[group].format(path.stem), _head(path), summary, target, _facts(group, target, node),
        steps, options,
    )  # fmt: skip


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options by dotted name; a class that is an option (an optimiser) stands under the option's own name."""
    for key, value in node.items():
        if key in _HIDDEN and not (key == "name" and value == "???"):
            continue
        if isinstance(value, Mapping):
            if "_target_" in value and not str(value["_target_"]).startswith("backdoor_bench."):
                yield f"{prefix}{key}", str(value["_target_"])
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> Any:
    """``${length:NAME,VALUE}`` as the value, which is the published one; other interpolations say where they look."""
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if not isinstance(value, str) or value == "???":
        return "(must be given)" if value == "???" else value
    published = _LENGTH.fullmatch(value)
    if published:
        return yaml.safe_load(published[1])
    return re.sub(r"\$\{\.*([^}:]*)\}", r"(as \1)", value)


def _facts(group: str, target: str, node: Mapping[str, Any]) -> dict[str, Any]:
    if group == "attack":
        return _taxonomy(target)
    if group == "defense":
        return {name: node.get(name, []) for name in FACTS}
    return _ports(target) if group == "stage" else {}


def _stages(path: Path) -> dict[str, str]:
    found = {}
    for item in _defaults(path):
        for key, leaf in item.items() if isinstance(item, Mapping) else ():
            group, _, place = str(key).partition("@stages.")
            if group == "/stage" and place:
                found[place] = str(leaf)
    return found


# -- the YAML's comments --------------------------------------------------------------------------------------------


def _head(path: Path) -> str:
    """The comment that a file begins with, as one text."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def _defaults(path: Path) -> list[Any]:
    return (yaml.safe_load(path.read_text()) or {}).get("defaults", [])


def _notes(path: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Comments behind options by the option's dotted name, those of the files in its defaults list first."""
    for item in _defaults(path):
        if item == "_self_":
            continue
        key, leaf = next(iter(item.items())) if isinstance(item, Mapping) else (path.parent.name, item)
        group, _, place = str(key).partition("@")
        folder = configuration.directory() / (group.lstrip("/") or path.parent.name)
        yield from _notes(folder / f"{leaf}.yaml", f"{prefix}{place}." if place else prefix)
    above: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        found = re.match(r"( *)(\w+):(.*)", line)
        if found is None:
            continue
        depth = len(found[1])
        above = [(d, name) for d, name in above if d < depth] + [(depth, found[2])]
        _, comment, note = found[3].partition(" #")
        if comment:
            yield prefix + ".".join(name for _, name in above), note.strip()


# -- the classes, read without importing them ---------------------------------------------------------------------


@cache
def _module(name: str) -> ast.Module | None:
    """The syntax tree of a module of this package; None for somebody else's."""
    package, _, rest = name.partition(".")
    if package != "backdoor_bench":
        return None
    base = configuration.HERE.joinpath(*rest.split(".")) if rest else configuration.HERE
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return ast.parse(path.read_text())
    return None


def _class(target: str) -> tuple[ast.Module, ast.ClassDef] | None:
    """A class and the module that defines it; names that were imported are followed."""
    module_name, _, name = target.rpartition(".")
    module = _module(module_name)
    for item in module.body if module is not None else ():
        if isinstance(item, ast.ClassDef) and item.name == name:
            assert module is not None
            return module, item
        if isinstance(item, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in item.names):
            return _class(f"{item.module}.{name}")
    return None


def _lineage(target: str) -> Iterator[ast.ClassDef]:
    """The class and, after it, the classes it comes from that are this package's, nearest first."""
    found = _class(target)
    if found is None:
        return
    module, kind = found
    yield kind
    for base in kind.bases:
        name = ast.unparse(base)
        if any(isinstance(item, ast.ClassDef) and item.name == name for item in module.body):
            yield from _lineage(f"{target.rpartition('.')[0]}.{name}")
            continue
        for item in module.body:
            if isinstance(item, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in item.names):
                yield from _lineage(f"{item.module}.{name}")


def _summary(target: str) -> str:
    found = _class(target)
    text = (ast.get_docstring(found[1]) or ast.get_docstring(found[0]) or "") if found else ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "").strip()


def _taxonomy(target: str) -> dict[str, str]:
    """The arguments of ``taxonomy = Taxonomy(...)``, under the names of that class's fields."""
    described = _class("backdoor_bench.attack.base.Taxonomy")
    assert described is not None
    fields = [i.target.id for i in described[1].body if isinstance(i, ast.AnnAssign) and isinstance(i.target, ast.Name)]
    for kind in _lineage(target):
        for item in kind.body:
            if not (isinstance(item, ast.Assign) and isinstance(item.value, ast.Call)):
                continue
            if [ast.unparse(name) for name in item.targets] == ["taxonomy"]:
                values = [ast.literal_eval(argument) for argument in item.value.args]
                named = {str(word.arg): ast.literal_eval(word.value) for word in item.value.keywords}
                return dict(zip(fields, values, strict=False)) | named
    return {}


def _ports(target: str) -> dict[str, Any]:
    """What a stage takes and gives: the annotations of the nearest ``run``."""
    for kind in _lineage(target):
        for item in kind.body:
            if isinstance(item, ast.FunctionDef) and item.name == "run":
                takes = [_optional(argument.annotation) for argument in item.args.args[3:]]
                gives = ast.unparse(item.returns) if item.returns is not None else "None"
                return {"takes": takes, "gives": None if gives == "None" else gives}
    return {}


def _optional(annotation: ast.expr | None) -> str:
    text = ast.unparse(annotation) if annotation is not None else ""
    return f"{text.removesuffix(' | None')} (optional)" if text.endswith(" | None") else text


# -- printing -----------------------------------------------------------------------------------------------------


def value(shown: Any) -> str:
    """A default as it is written on a command line."""
    if isinstance(shown, list):
        return f"[{','.join(map(value, shown))}]"
    return shown if isinstance(shown, str) else json.dumps(shown)


def _fact(shown: Any) -> str:
    return (", ".join(shown) or "-") if isinstance(shown, list) else str(shown or "-")


def terminal(found: Mapping[str, Sequence[Entry]], console: Console) -> None:
    """One table per kind: what it is, its defaults, its source."""
    for what, kind in found.items():
        table = Table(title=Text(TITLES[what], style="bold"), title_justify="left", show_lines=True)
        for column in ("name", "what it is", "options and defaults", "source"):
            table.add_column(column, overflow="fold", ratio=None if column == "name" else 1)
        for entry in kind:
            facts = [f"{name}: {_fact(shown)}" for name, shown in entry.facts.items()]
            if entry.stages:
                facts.insert(0, "stages: " + " → ".join(entry.stages))
            options = [f"{option.name}={value(option.default)}" for option in entry.options]
            what_it_is = "\n".join(filter(None, [entry.summary, *facts]))
            table.add_row(*map(Text, (entry.name, what_it_is, "\n".join(options) or "-", entry.source)))
        console.print(table)


def markdown(found: Mapping[str, Sequence[Entry]]) -> str:
    """The page of the documentation."""
    asked = " ".join(found) if list(found) != list(GROUPS) else ""
    lines = [
        "# What there is", "",
        f"Made by `python -m backdoor_bench.catalog{' ' + asked if asked else ''} --out FILE.md` from `conf/` and the "
        "classes that it names; do not edit. Defaults are the published ones; presets and recipes shorten some.",
    ]  # fmt: skip
    for what, kind in found.items():
        columns = ["name", *(("stages",) if what == "defenses" else ()), *(kind[0].facts if kind else ()), "source"]
        lines += ["", f"## {TITLES[what]}", "", _row(columns), _row(["---"] * len(columns))]
        for entry in kind:
            stages = [" → ".join(entry.stages)] if what == "defenses" else []
            facts = [_escape(_fact(shown)) for shown in entry.facts.values()]
            lines.append(_row([f"[{entry.name}](#{_anchor(entry)})", *stages, *facts, _escape(entry.source)]))
        for entry in kind:
            lines += [
                "", f'<a id="{_anchor(entry)}"></a>', "", f"### {entry.name}", "",
                *([f"{_escape(entry.summary)}  "] * bool(entry.summary)), f"`{entry.choose}`, `{entry.code}`",
            ]  # fmt: skip
            if entry.stages:
                links = [f"{name}: [{leaf}](#stage-{leaf})" for name, leaf in entry.stages.items()]
                lines += ["", "Stages: " + " → ".join(links)]
            if entry.options:
                lines += ["", "| option | default | |", "| --- | --- | --- |"]
                lines += [_row([f"`{o.name}`", f"`{value(o.default)}`", _escape(o.note)]) for o in entry.options]
    return "\n".join(lines) + "\n"


def _anchor(entry: Entry) -> str:
    """Kinds share names (``prune`` is a stage; a network could be called so too)."""
    kind = next(group for group, choose in CHOICE.items() if choose.format(entry.name) == entry.choose)
    return f"{kind}-{entry.name}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return re.sub(r"([\\|*_<\[\]])", r"\\\1", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 with one message."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.catalog",
        description="Attacks, defenses, stages, data sets and networks: what they are, their options, their sources.",
    )
    parser.add_argument("what", nargs="*", metavar="KIND", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of --out, else terminal")
    parser.add_argument("--out", type=Path, help="file to write instead of the terminal: NAME.md or NAME.json")
    options = parser.parse_args(arguments)
    try:
        for what in options.what:
            if what not in GROUPS:
                raise ConfigError(f"'{what}' is no kind; expected {', '.join(GROUPS)}")
        found = {what: entries(what) for what in options.what or GROUPS}
        by_name = {".md": "markdown", ".json": "json"}.get(options.out.suffix) if options.out else "terminal"
        _write(found, options.format or by_name or "markdown", options.out)
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    return 0


def _write(found: Mapping[str, Sequence[Entry]], kind: str, out: Path | None) -> None:
    if kind == "terminal" and out is None:
        terminal(found, Console(highlight=False))
        return
    if kind == "terminal":
        raise ConfigError("--format terminal is for the terminal; with --out choose markdown or json")
    if kind == "json":
        text = json.dumps({what: [asdict(entry) for entry in kinds] for what, kinds in found.items()}, indent=1) + "\n"
    else:
        text = markdown(found)
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror}; choose another place with --out") from error
    progress.say(f"written to {out}")


if __name__ == "__main__":
    sys.exit(main())
