"""`flava`: the command line of the model."""

from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="FLAVA over the shards that `pmd` writes; no commands yet.")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(f"flava {version('pmd-flava')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The console script."""
    app()
