"""``python -m fastcrit``: the same as the command ``fastcrit`` (as torchrun needs it)."""

from fastcrit.cli import main

main()
