"""What every test shares.

The repository root goes to the END of the path: `tests.*` and `interop.*` are found there, while
`meshnode` stays the installed package, which is what a newcomer runs.
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)
