"""python -m manualgrad: the command line, where the script is not on the path."""

import sys

from manualgrad.cli import main

sys.exit(main())
