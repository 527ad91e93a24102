"""`python -m turbodiffusion` is the `turbodiffusion` command."""

import sys

from turbodiffusion.cli import main

sys.exit(main())
