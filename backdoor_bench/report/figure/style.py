"""How figures look: one colour, marker and hatch per method wherever it appears, readable in grey and in print.

Nothing here touches pyplot, so no window and no global state: figures are :class:`matplotlib.figure.Figure`.
"""

from __future__ import annotations

import hashlib
import textwrap
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_bench.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
"""Okabe and Ito's without the yellow that a printer loses, and Tol's wine for their black, which is the victim's."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----")
DASHES = ("-", "--", "-.", ":")
GREY = "#808080"
NO_DEFENSE, CLEAN, VICTIM = "no defense", "clean network", "victim"
FORMATS = ("svg", "pdf", "png")

PLACES = (
    "ft", "fp", "anp", "clp", "unibp", "unit", "tsbd", "gradprune", "gradprune_oracle", "nad", "nc", "ibau", "rnp",
    "fst", "ftsam", "superft", "sau", "npd", "bnp", "awm", "mmbd", "btidbf", "pbe", "seam", "bcu", "fmp", "nft", "mesa",
    "baeraser", "badnet", "blended", "sig", "wanet", "combat", "lf", "ssba", "inputaware", "bpp", "trojannn",
    "label_consistent", "sbl", "refool", "lira", "dynamic", "instagram", "dfst", "adap_blend", "adaptive_unit",
    "narcissus",
)  # fmt: skip
"""Methods of the field that have a place of their own, so that no two of them look alike. Any other name has one of
the places that are left, by its hash; nobody needs to add it here."""
_ALL = len(COLORS) * len(MARKERS)  # 7 and 9 have no common divisor: each pair occurs once


@dataclass(frozen=True)
class Look:
    """A method's colour (``#RRGGBB``), marker, hatch and line style."""

    color: str
    marker: str
    hatch: str
    dash: str


def look(name: str) -> Look:
    """How a method looks, from its name alone."""
    if name in (NO_DEFENSE, CLEAN):
        return Look(GREY, "", "", "--")
    if name == VICTIM:
        return Look("#000000", "", "", "-")
    if name in PLACES:
        place = PLACES.index(name)
    else:
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        place = len(PLACES) + digest % (_ALL - len(PLACES))
    return Look(
        COLORS[place % len(COLORS)],
        MARKERS[place % len(MARKERS)],
        HATCHES[place % len(HATCHES)],
        DASHES[place // len(COLORS) % len(DASHES)],
    )


def classes(count: int) -> list[Look]:
    """Looks of things without an order and a name that matters, as a data set's classes: pairs of colour and marker."""
    return [Look(COLORS[n % len(COLORS)], MARKERS[n % len(MARKERS)], "", "-") for n in range(count)]


def steps(count: int) -> list[Look]:
    """Looks of values that have an order and no name of their own (ratios, regimes): from dark to light."""
    import matplotlib

    shades = matplotlib.colormaps["cividis"]
    at = [0.05 + 0.8 * number / max(count - 1, 1) for number in range(count)]
    return [
        Look(_hex(shades(a)), MARKERS[n % len(MARKERS)], HATCHES[n % len(HATCHES)], DASHES[n % len(DASHES)])
        for n, a in enumerate(at)
    ]


def _hex(rgba: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02X}" for part in rgba[:3])


@contextmanager
def printed() -> Iterator[None]:
    """Inside the block new artists have the sizes and lines of a printed page."""
    import matplotlib

    settings: dict[Any, Any] = {
        "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
        "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.5,
        "lines.linewidth": 1.3, "lines.markersize": 5, "hatch.linewidth": 0.5, "axes.linewidth": 0.6,
        "pdf.fonttype": 42, "svg.hashsalt": "backdoor_bench",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def canvas(
    rows: int = 1, columns: int = 1, width: float = 3.4, height: float = 2.4, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of ``rows`` by ``columns`` panels of ``width`` by ``height`` inches; call it inside
    :func:`printed`. ``options`` go to ``Figure.subplots``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in panels]


def title(figure: Figure, text: str) -> None:
    """The heading, left."""
    _wrapped(figure, "suptitle", text, x=0.01, ha="left", fontsize=9)


def footnote(figure: Figure, lines: Iterable[str]) -> None:
    """What a reader must know (n, what was left out, what was pooled), under the panels and wrapped to their width."""
    sentences = [line[:1].upper() + line[1:] for line in lines if line]
    _wrapped(figure, "supxlabel", ". ".join(sentences) + ".", x=0.01, ha="left", fontsize=6.5)


def _wrapped(figure: Figure, place: str, text: str, fontsize: float, **options: Any) -> None:
    columns = int(figure.get_figwidth() * 72 / (0.58 * fontsize))  # wider than DejaVu's mean letter
    text = text.replace(" %", "\u00a0%")  # a number keeps its unit
    getattr(figure, place)("\n".join(textwrap.wrap(text, max(columns, 20))), fontsize=fontsize, **options)


def legend(figure: Figure, handles: Sequence[Any], title: str | None = None) -> None:
    """One legend for all panels, right of them. A pair of handles is drawn one over the other."""
    names = [(one[0] if isinstance(one, tuple) else one).get_label() for one in handles]
    figure.legend(handles=list(handles), labels=names, loc="outside right center", title=title, title_fontsize=7,
                  alignment="left")  # fmt: skip


def handle(name: str, how: Look, filled: bool = False) -> Any:
    """A legend's entry: a line with its marker, or a filled patch."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if filled:
        return Patch(facecolor=soft(how.color), edgecolor=how.color, hatch=how.hatch, label=name)
    dash: Any = how.dash
    return Line2D([], [], color=how.color, marker=how.marker or None, linestyle=dash, label=name)


def boxed(name: str, how: Look) -> tuple[Any, Any]:
    """A legend's entry for boxes with points: the area, and the marker that stands alone where there is no box."""
    from matplotlib.lines import Line2D

    point = Line2D([], [], color=how.color, marker=how.marker or ".", markeredgecolor="black", markeredgewidth=0.3,
                   markersize=4.5, linestyle="none", label=name)  # fmt: skip
    return handle(name, how, filled=True), point


def soft(color: str, share: float = 0.45) -> tuple[float, float, float]:
    """A colour mixed with white, for areas under their outlines; ``share`` of it stays."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return (1 - share + share * red, 1 - share + share * green, 1 - share + share * blue)


def check_formats(formats: Sequence[str]) -> None:
    """Refuse file formats that are not offered.

    Raises:
        ConfigError: one is none of :data:`FORMATS`, or there is none.
    """
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats:
        raise ConfigError(f"--formats {','.join(formats)}: expected some of {','.join(FORMATS)}")


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS, dpi: int = 150) -> list[Path]:
    """Write ``NAME.svg``, ``.pdf``, ``.png``; each is whole or not there, and the same figure gives the same bytes.

    Raises:
        ConfigError: an unknown format.
        StoreError: the folder cannot be written.
    """
    check_formats(formats)
    made = []
    for kind in formats:
        path = folder / f"{name}.{kind}"
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        with replacing(path) as temporary, printed():  # the salt of an SVG's names is read when it is written
            figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata)
        made.append(path)
    return made


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that becomes ``path`` when the block ends, or nothing.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another place with --out") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
