"""`python -m latentcomm`: the command `latentcomm`, where its script is not on the path."""

from latentcomm.cli import app

if __name__ == "__main__":
    app()
