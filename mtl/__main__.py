import sys

from mtl.cli.main import main

sys.exit(main())
