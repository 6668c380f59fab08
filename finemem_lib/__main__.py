"""Run the command line with ``python -m finemem_lib``.

The worker of every notebook imports this module again, which is why the commands are imported by
the command only.
"""


def main() -> int:
    """Carry out the command line of this process and return its exit code."""
    from finemem_lib.cli.main import main as command

    return command()


if __name__ == "__main__":
    raise SystemExit(main())
