"""``python -m pylandscape.compat.plot_surface``: see `loss_landscape.plot_surface`."""

import sys

from .loss_landscape.plot_surface import main

if __name__ == "__main__":
    sys.exit(main())
