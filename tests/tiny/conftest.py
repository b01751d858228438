"""The scripts under tools/tiny import each other by plain name, as when they are run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "tiny"))
