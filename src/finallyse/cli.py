"""The `finallyse` command. Each sub-command imports what it needs when it is called, so that --help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from finallyse.errors import one_line_errors

app = typer.Typer(
    help="Enhance speech, convert checkpoints, look at networks, corpora and runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def finallyse() -> None:
    """Enhance speech, convert checkpoints, look at networks, corpora and runs."""


@app.command()
def status(
    config: Annotated[
        list[str] | None,
        typer.Option(help="config file over config/config.yaml, or key=value, as for Snakemake"),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE | KEY=VALUE]...", help="more of the same")] = None,
) -> None:
    """What of the workflow exists, what runs, step and time left of each training."""
    from finallyse.status import show

    show([*(config or []), *(more or [])])


def main() -> None:
    """Entry point of the `finallyse` command."""
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
