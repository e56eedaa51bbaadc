"""How the user calls this package: by module in a checkout, by console command once it is installed."""

from __future__ import annotations

PACKAGE = __name__.rpartition(".utils.")[0]  # "trainers.hegraph" in a checkout, "hegraph" once installed


def command(arguments: str = "") -> str:
    """The command line of `arguments`, whose first word may be a sub-command such as "datasets".

    "datasets check" gives "python -m trainers.hegraph.datasets check" in a checkout and "hegraph datasets check" once
    installed; "--shots 1" gives "python -m trainers.hegraph --shots 1" and "hegraph --shots 1"; without arguments it
    is the name of the program alone.
    """
    if PACKAGE == "hegraph":
        return f"hegraph {arguments}".rstrip()
    program = f"python -m {PACKAGE}"
    return f"{program}.{arguments}" if arguments[:1].isalpha() else f"{program} {arguments}".rstrip()
