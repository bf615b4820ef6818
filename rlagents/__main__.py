"""`python -m rlagents` is the command `rlagents`."""

from rlagents.cli import main

if __name__ == "__main__":
    main()
