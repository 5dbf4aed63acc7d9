"""`python -m meshnode` is the `meshnode` command."""

import sys

from meshnode.cli.main import main

sys.exit(main())
