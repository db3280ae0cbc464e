"""``python -m kvmd``."""

import sys

from kvmd.cli import main

sys.exit(main())
