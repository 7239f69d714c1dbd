"""The command line: arguments in, the library's calls, tables or JSON out. It holds no logic of its own."""

from eckart.cli.main import main

__all__ = ["main"]
