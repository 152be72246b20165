"""What the classes say, read without importing them: torch would take seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from typing import Any

from backdoor_bench import config as configuration


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


def summary(target: str) -> str:
    """The first paragraph of the class's docstring, or of its module's."""
    found = _class(target)
    text = (ast.get_docstring(found[1]) or ast.get_docstring(found[0]) or "") if found else ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "").strip()


def taxonomy(target: str) -> dict[str, str]:
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


def ports(target: str) -> dict[str, Any]:
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
