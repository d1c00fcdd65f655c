"""`python -m shmstore.cli`."""

import sys

from shmstore.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
