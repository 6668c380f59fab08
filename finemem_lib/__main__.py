"""``python -m finemem_lib``: the command line."""

from finemem_lib.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
