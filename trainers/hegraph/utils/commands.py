"""How the user calls this package: by module in a checkout, by console command once it is installed."""

from __future__ import annotations

PACKAGE = __name__.rpartition(".utils.")[0]  # "trainers.hegraph" in a checkout, "hegraph" once installed


def command(arguments: str) -> str:
    """The command line of `arguments`, whose first word may be a sub-command such as "datasets".

    "datasets check" gives "python -m trainers.hegraph.datasets check" in a checkout and "hegraph datasets check" once
    installed.
    """
    if PACKAGE == "hegraph":
        return f"hegraph {arguments}"
    return f"python -m {PACKAGE}.{arguments}" if arguments[:1].isalpha() else f"python -m {PACKAGE} {arguments}"
