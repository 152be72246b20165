"""What a model file is, without executing anything in it: ``python -m backdoor_bench.inspect FILE``.

Exit status: 0 if it is plain, finite weights that ``victim=FILE`` reads; 1 if it is refused, and why is said.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from backdoor_bench import pipe
from backdoor_bench.suspect.container import LIMIT_BYTES, printable, readable
from backdoor_bench.suspect.inspection import Inspection, inspect
from backdoor_bench.words import counted

SHOWN = 12


def lines(found: Inspection, everything: bool = False) -> list[str]:
    """The report, for a person."""
    said = [f"{printable(str(found.path))}: {found.kind or 'not a model file that is known here'}"]
    if found.bytes:
        said.append(f"size       {found.bytes:,} bytes ({readable(found.bytes)})")
    if found.sha256:
        said.append(f"sha256     {found.sha256}")
    if found.tensors:
        total = sum(value.bytes for value in found.tensors.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(v.dtype for v in found.tensors.values()).items())
        said.append(f"tensors    {len(found.tensors)} ({kinds}), {readable(total)}")
        where = f"under {found.wrapping}" if found.wrapping else "at the top"
        said.append(f"state dict {counted(len(found.weights), 'tensor')} {where}")
        said.append(f"classes    {found.classes or 'not told by the shapes'}")
        said.append(f"fits       {' | '.join(found.fits) or 'no architecture of conf/model'}")
        said += [f"close to   {text}" for text in found.close]
    if found.calls:
        said.append("calls      what unpickling it would import or call besides making tensors:")
        said += [f"           {name}" for name in found.calls]
    elif found.kind:
        said.append("calls      none besides making tensors")
    if found.tensors:
        said.append("")
        listed = list(found.tensors.items())
        for name, value in listed if everything else listed[:SHOWN]:
            said.append(f"  {printable(name)}  {value.dtype} {list(value.shape)}")
        if len(listed) > SHOWN and not everything:
            said.append(f"  ... and {len(listed) - SHOWN} more (--all)")
        said.append("")
    said.append(
        f"REFUSED    {found.refused}" if found.refused else "clean      plain weights, all finite; victim=FILE reads it"
    )
    return said


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 for plain, finite weights, 1 for anything else."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.inspect",
        description="What a model file is, without executing anything in it.",
        epilog="exit status: 0 plain, finite weights; 1 refused",
    )
    parser.add_argument("path", help=".safetensors, .pt, .pth, or anything")
    parser.add_argument("--all", action="store_true", help="list every tensor")
    parser.add_argument("--limit", type=float, default=LIMIT_BYTES / 2**30, metavar="GIB", help="largest file to read")
    options = parser.parse_args(arguments)
    found = inspect(options.path, int(options.limit * 2**30))
    console = Console(highlight=False, markup=False)
    for line in lines(found, options.all):
        console.print(line, soft_wrap=True)
    return int(found.refused is not None)


if __name__ == "__main__":
    sys.exit(main())
