"""`python -m pylandscape` is `pylandscape`."""

import sys

from .cli import main

sys.exit(main())
