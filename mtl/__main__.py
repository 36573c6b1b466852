"""Lets `python -m mtl` run the command line."""

import sys

from mtl.cli.main import main

sys.exit(main())
