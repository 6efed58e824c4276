"""Entry point of ``python -m demo``."""

import sys

from demo.tour import main

sys.exit(main())
