"""``python -m finemem_lib``: the command line."""

import sys

from finemem_lib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
