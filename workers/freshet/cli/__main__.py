"""`python -m freshet.cli` is `freshet`."""

from freshet.cli import app

if __name__ == "__main__":
    app(prog_name="freshet")
