"""The command: ``python -m backdoor_bench +attack=badnet +defense=unibp``, or many of them with ``-m``.

Nothing is imported here that takes time: Ctrl-C ends the command in one line from its first moment on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from backdoor_bench import pipe

INTERRUPTED = 130
"""As a shell has it: 128 and the number of the signal."""
WORDS = "interrupted: what is done is kept, the same command goes on from there"


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 if a run failed, or 130 after an interruption."""
    ours = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    before = signal.signal(signal.SIGINT, _interrupt) if ours else None
    try:
        from backdoor_bench import command

        return command.main(arguments)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning makes an exit of an interruption in the middle of a fit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print(WORDS, file=sys.stderr)
        before = signal.SIG_IGN  # the next one would only spoil the end
        return INTERRUPTED
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but end at once inside an import, where C code may swallow it and go on."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, f"{WORDS}\n".encode())
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
