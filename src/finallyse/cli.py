"""The `finallyse` command. Each sub-command imports what it needs when it is called, so that --help is instant."""

from __future__ import annotations

import sys
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


@app.command()
def config(
    name: Annotated[str, typer.Argument(metavar="NETWORK | FILE", help="network of the pipeline, or experiment file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options to change, as for scripts/train.py")
    ] = None,
    configfile: Annotated[
        list[str] | None, typer.Option(help="config file over config/config.yaml, as for Snakemake; may be repeated")
    ] = None,
) -> None:
    """Print an experiment in full: every option as it resolves, and where its value comes from."""
    from finallyse.provenance import show

    show(name, overrides or [], configfile or [])


@app.command()
def enhance(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="recordings or folders of them; -: stdin")],
    output: Annotated[str, typer.Argument(help="a file, or a folder for several; -: a WAV on stdout")],
    checkpoint: Annotated[str, typer.Option(help="a trained network, results/NETWORK.ckpt")],
    rate: Annotated[int, typer.Option(help="sample rate of the output, Hz")] = 48000,
    format: Annotated[str, typer.Option(help="of outputs in a folder: wav, flac, ogg, opus, mp3")] = "wav",
    subtype: Annotated[str | None, typer.Option(help="of WAV and FLAC: PCM_16 (default), PCM_24, FLOAT")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files that exist")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or bf16: faster, about -45 dB from fp32")] = "fp32",
    batch: Annotated[int | None, typer.Option(min=1, help="windows at a time; default: 1 on a CPU, 4 on a GPU")] = None,
    chunk: Annotated[float, typer.Option(help="seconds that the network is shown at a time")] = 20.48,
    wavlm: Annotated[str | None, typer.Option(help="folder of WavLM, where the checkpoint's own path is gone")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's own")] = None,
) -> None:
    """Enhance recordings of any format, rate, length and number of channels; video gives its sound track.

    Several inputs, or folders, go into the folder OUTPUT. Files appear whole or not at all. A file that cannot be
    enhanced does not stop the others; it is listed at the end and the exit status is 1.
    """
    from finallyse.inference.command import run

    sys.exit(
        run(
            inputs,
            output,
            checkpoint,
            rate=rate,
            suffix=f".{format.lower().lstrip('.')}",
            subtype=subtype,
            force=force,
            device=device,
            precision=precision,
            batch=batch,
            window_s=chunk,
            wavlm=wavlm,
            threads=threads,
        )
    )


@app.command()
def pack(
    checkpoint: Annotated[str, typer.Argument(help="a trained network, results/NETWORK.ckpt")],
    output: Annotated[str, typer.Argument(help="the checkpoint to write")],
    wavlm: Annotated[str | None, typer.Option(help="folder of WavLM, where the checkpoint's own path is gone")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a file that exists")] = False,
) -> None:
    """Make a checkpoint to give away: without discriminators, with the WavLM that it listens through inside."""
    from finallyse.inference.pack import pack as write

    write(checkpoint, output, wavlm, force)


@app.command()
def data(
    plan: Annotated[bool, typer.Option("--plan", help="what each corpus costs in bytes, and what is here")] = False,
    citations: Annotated[bool, typer.Option("--citations", help="licence and citation of each")] = False,
    config: Annotated[
        list[str] | None,
        typer.Option(help="config file over config/config.yaml, or key=value, as for Snakemake"),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE | KEY=VALUE]...", help="more of the same")] = None,
) -> None:
    """What the corpora and weights cost, where they come from, how to cite them. `snakemake data` fetches them."""
    from finallyse.corpora.plan import show_citations, show_plan

    if citations:
        show_citations()
    if plan or not citations:
        show_plan([*(config or []), *(more or [])])


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="a published checkpoint: HiFi-GAN, HiFi++, or the original FINALLY's")],
    output: Annotated[str, typer.Argument(metavar="OUT.ckpt", help="the checkpoint to write")],
    network: Annotated[list[str], typer.Option(help="what it holds, e.g. hifigan_gen; twice for mpd and msd")],
    experiment: Annotated[str | None, typer.Option(help="experiment file that describes the network")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="an argument of the network, over its default")
    ] = None,
) -> None:
    """Turn a published checkpoint into one of this package. Every key must fit; all that do not are listed."""
    from finallyse.models.convert import convert, parse_arguments

    for line in convert(source, output, network, experiment, parse_arguments(arg or [])):
        print(line)
    print(f"{output} written")


@app.command()
def models(
    seconds: Annotated[float, typer.Option(min=0.1, help="length of the clip that operations are counted on")] = 1.024,
) -> None:
    """The networks: paper, parameters, input, output, multiply-accumulate operations for a second of audio."""
    from finallyse.models.table import show

    show(seconds)


def main() -> None:
    """Entry point of the `finallyse` command."""
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
