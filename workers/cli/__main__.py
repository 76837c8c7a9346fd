"""`python -m workers.cli` is `freshet`."""

from workers.cli import app

if __name__ == "__main__":
    app(prog_name="freshet")
