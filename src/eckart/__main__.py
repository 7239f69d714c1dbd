"""``python -m eckart``: the command line, for launchers that start modules."""

from eckart.cli import main

if __name__ == "__main__":
    main()
