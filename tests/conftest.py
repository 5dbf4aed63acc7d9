"""What every test shares.

The repository root goes to the END of the path: `tests.*` and `interop.*` are found there, while
`meshnode` stays the installed package, which is what a newcomer runs. Programs that a test starts run
that same package too, and not the one that lies uncompiled in the working directory. A run in a shell's
background starts with SIGINT ignored, which programs inherit: the tests that send it need it back.
Hypothesis judges what code does, never how long a shared machine took over it.
"""

import os
import signal
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)

from hypothesis import HealthCheck, settings  # noqa: E402

import meshnode  # noqa: E402

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = str(Path(meshnode.__file__).parents[1])

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
