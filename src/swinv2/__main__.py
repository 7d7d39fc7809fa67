"""`python -m swinv2` runs the command `swinv2`."""

from swinv2.cli import app

if __name__ == "__main__":
    app()
