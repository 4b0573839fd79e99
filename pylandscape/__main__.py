"""`python -m pylandscape` is `pylandscape`."""

import sys

from .cli.app import main

sys.exit(main())
