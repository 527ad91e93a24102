"""`python -m turbodiffusion` is the `turbodiffusion` command."""

import sys

from turbodiffusion.cli.main import main

sys.exit(main())
