"""The command: ``python -m backdoor_bench.analysis tsne dataset=cifar10 +attack=badnet +defense=unibp --out figures``.

The overrides are those of an experiment; ``+defense=unibp,ft`` looks at several purified networks.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backdoor_bench import overrides as typed
from backdoor_bench import pipe, progress
from backdoor_bench.analysis.base import ANALYSES, Finding
from backdoor_bench.config import directory, plain
from backdoor_bench.errors import BenchError, ConfigError, unknown
from backdoor_bench.report.figure import style

SEES = "Uses the attacker's trigger, which no blind defense sees"
BLIND = "Uses no triggered image"


def split(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The victim's overrides, the defenses to look at, and the overrides of these (``defense.epochs=5``).

    ``-m`` and sweeps are not for here; ``+defense=a,b`` is.
    """
    own, names, options = [], list[str](), []
    for word in words:
        name, _, value = word.partition("=")
        if name.lstrip("+") == "defense":
            names += [part for part in value.split(",") if part]
        elif "defense." in name:
            options.append(word)
        else:
            own.append(word)
    if len({*names}) != len(names):
        raise ConfigError(f"+defense={','.join(names)}: each defense once")
    if options and not names:
        raise ConfigError(f"{options[0]} is an option of a defense, and none is looked at; add +defense=NAME")
    return own, names, options


class Composer:
    """Composes and resolves the configuration of a victim, without a defense or with one by name."""

    def __init__(self, own: Sequence[str], defenses: Sequence[str], options: Sequence[str]) -> None:
        self.own, self.defenses, self.options = list(own), list(defenses), list(options)
        for chosen in [[f"+defense={name}"] for name in defenses] or [[]]:
            typed.prepare([*own, *chosen], directory())

    def __call__(self, defense: str | None) -> Mapping[str, Any]:
        import hydra
        from hydra.errors import HydraException

        words = self.own
        if defense is not None:
            words = [*words, f"+defense={defense}", *(self.options if defense in self.defenses else [])]
        try:
            with hydra.initialize_config_dir(str(directory()), version_base="1.3"):
                return plain(hydra.compose("config", list(words)))
        except HydraException as error:
            raise ConfigError(f"{' '.join(words)}: {str(error).splitlines()[0]}") from None


def write(name: str, study: Any, finding: Finding, out: Path, formats: Sequence[str]) -> list[Path]:
    """The picture, ``NAME.json`` (what it is of, the summary) and ``NAME.csv`` (the numbers behind the picture)."""
    sees = SEES if finding.sees_trigger else BLIND
    with style.printed():
        figure = finding.draw()
        style.footnote(figure, [*study.caption(), *finding.notes(), sees])
    made = style.save(figure, out, name, formats)
    facts = {
        "analysis": name, "sees_trigger": finding.sees_trigger, "victim": study.plan.victim_key,
        "dataset": study.plan.manifest.variant, "architecture": study.plan.architecture, "attack": study.plan.attack,
        "defenses": list(study.defenses), "seed": study.plan.config["seed"],
        "repetition": study.plan.config["repetition"], "notes": [*study.caption(), *finding.notes()],
        **finding.summary(),
    }  # fmt: skip
    rows, text = list(finding.rows()), io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    for kind, content in (("json", json.dumps(facts, indent=1, allow_nan=False) + "\n"), ("csv", text.getvalue())):
        path = out / f"{name}.{kind}"
        with style.replacing(path) as temporary:
            temporary.write_text(content)
        made.append(path)
    return made


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse. Returns 0, or 1 with one sentence if it could not be done."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.analysis", description="Look into one victim and its purified networks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="analyses:\n" + "\n".join(f"  {name:<12} {what}" for name, what in ANALYSES.items()),
    )  # fmt: skip
    parser.add_argument("name", help="one of those below")
    parser.add_argument(
        "overrides", nargs="*", help="of an experiment: dataset=cifar10 +attack=badnet +defense=unibp,ft"
    )
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--formats", default=",".join(style.FORMATS), help="some of svg,pdf,png")
    parser.add_argument("--images", type=int, default=1000, help="test images to look at, at most")
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.name not in ANALYSES:
            raise unknown("analysis", options.name, ANALYSES)
        formats = options.formats.split(",")
        style.check_formats(formats)
        own, defenses, of_defenses = split(options.overrides)
        composer = Composer(own, defenses, of_defenses)
        importlib.import_module("matplotlib")  # an extra, without which minutes of work would be for nothing

        from backdoor_bench.analysis.study import Study  # seconds of imports that a misspelt name need not wait for
        from backdoor_bench.bench import Bench
        from backdoor_bench.store import Store

        module = importlib.import_module(f"backdoor_bench.analysis.{options.name}")
        store = Store(composer(None)["store_dir"])
        study = Study(composer, Bench(store), defenses, options.images)
        made = write(options.name, study, module.analyse(study), options.out, formats)
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    except ModuleNotFoundError as error:
        progress.say(f"error: analyses need {error.name}; install it with pip install 'backdoor_bench[report]'")
        return 1
    progress.say(f"{', '.join(path.name for path in made)} in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
