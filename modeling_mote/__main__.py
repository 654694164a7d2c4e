"""`python -m modeling_mote` is `mote`."""

import sys

from .commands import main

sys.exit(main())
