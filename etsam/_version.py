"""Version of the program, which rooms below the package's door ask for, too."""

__version__ = "0.2.0"
