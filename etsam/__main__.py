"""`python -m etsam` is the console command."""

from etsam.cli.main import main

main()
