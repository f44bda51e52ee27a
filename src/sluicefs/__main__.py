"""`python -m sluicefs` is the command line."""

from sluicefs.cli import main

if __name__ == "__main__":
    main()
