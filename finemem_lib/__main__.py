"""Run the command line with ``python -m finemem_lib``."""

from finemem_lib.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
