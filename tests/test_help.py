"""What ``--help`` says to somebody who knows nothing yet."""

from __future__ import annotations

import os
import re
import subprocess
import sys


def test_help_says_what_to_type_and_fits_a_screen(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "backdoor_bench", "--help"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0
    assert "python -m backdoor_bench +attack=badnet +defense=unibp" in done.stdout
    assert re.search(r"attack: .*\bbadnet, ", done.stdout)
    assert done.stdout.count("\n") < 45
    assert list(tmp_path.iterdir()) == []
