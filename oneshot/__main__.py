"""`python -m oneshot` is the command line."""

from oneshot.cli import main

main()
