"""`python -m turbodiffusion` and the command `turbodiffusion`, which can be stopped while it starts."""

import sys

from turbodiffusion.cli import signals


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        with signals.stoppable():
            from turbodiffusion.cli.main import main as run

            return run()
    except KeyboardInterrupt:
        signals.tell("cli.interrupted")
        return signals.INTERRUPTED
    except signals.Terminated:
        signals.tell("cli.terminated")
        return signals.TERMINATED


if __name__ == "__main__":
    sys.exit(main())
