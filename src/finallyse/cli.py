"""The `finallyse` command. Each subcommand defers its imports until it is called, so that --help is instant."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from finallyse.errors import one_line_errors

app = typer.Typer(
    help="Enhance speech, convert checkpoints, inspect networks, corpora and runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def finallyse() -> None:
    """Enhance speech, convert checkpoints, inspect networks, corpora and runs."""


@app.command()
def status(
    config: Annotated[
        list[str] | None,
        typer.Option(help="config file over config/config.yaml, or key=value, as for Snakemake"),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE | KEY=VALUE]...", help="additional config files or overrides"),
    ] = None,
) -> None:
    """Show which outputs exist, which jobs are running, and the step and time left of each training."""
    from finallyse.status import show

    show([*(config or []), *(more or [])])


@app.command()
def config(
    name: Annotated[str, typer.Argument(metavar="NETWORK | FILE", help="network of the pipeline, or experiment file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options to override, as for scripts/train.py")
    ] = None,
    configfile: Annotated[
        list[str] | None, typer.Option(help="config file over config/config.yaml, as for Snakemake; may be repeated")
    ] = None,
) -> None:
    """Print an experiment in full: the resolved value of every option and where it comes from."""
    from finallyse.provenance import show

    show(name, overrides or [], configfile or [])


@app.command()
def enhance(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="recordings or folders of them; -: stdin")],
    output: Annotated[str, typer.Argument(help="output file, or folder for several inputs; -: WAV to stdout")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="NAME | FILE",
            help="trained network: results/NETWORK.ckpt, or one that comes with the package; default: small",
        ),
    ] = None,
    rate: Annotated[int, typer.Option(help="sample rate of the output, Hz")] = 48000,
    format: Annotated[str, typer.Option(help="output format in a folder: wav, flac, ogg, opus, mp3")] = "wav",
    subtype: Annotated[
        str | None, typer.Option(help="sample format of WAV and FLAC: PCM_16 (default), PCM_24, FLOAT")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite existing files")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or bf16: faster, differs from fp32 by about -45 dB")] = "fp32",
    batch: Annotated[int | None, typer.Option(min=1, help="windows per batch; default: 1 on a CPU, 4 on a GPU")] = None,
    chunk: Annotated[float, typer.Option(help="window length in seconds")] = 20.48,
    wavlm: Annotated[
        str | None, typer.Option(help="folder of WavLM, if the path in the checkpoint no longer exists")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's own")] = None,
) -> None:
    """Enhance recordings of any format, rate, length and number of channels, or the sound track of a video.

    Several inputs, or folders, are written to the folder OUTPUT. Files are written atomically. A file that cannot be
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
    checkpoint: Annotated[str, typer.Argument(help="trained network, results/NETWORK.ckpt")],
    output: Annotated[str, typer.Argument(help="checkpoint to write")],
    card: Annotated[str | None, typer.Option(help="model card, a text file, to embed")] = None,
    wavlm: Annotated[
        str | None, typer.Option(help="folder of WavLM, if the path in the checkpoint no longer exists")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite an existing file")] = False,
) -> None:
    """Write a self-contained checkpoint: drops the discriminators, embeds WavLM and a model card."""
    from finallyse.inference.pack import pack as write

    write(checkpoint, output, wavlm, force, card)


@app.command()
def data(
    plan: Annotated[bool, typer.Option("--plan", help="size of each corpus in bytes, and what is present")] = False,
    citations: Annotated[bool, typer.Option("--citations", help="licence and citation of each corpus")] = False,
    config: Annotated[
        list[str] | None,
        typer.Option(help="config file over config/config.yaml, or key=value, as for Snakemake"),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE | KEY=VALUE]...", help="additional config files or overrides"),
    ] = None,
) -> None:
    """Show the size, source and citation of the corpora and weights. `snakemake data` downloads them."""
    from finallyse.corpora.plan import show_citations, show_plan

    if citations:
        show_citations()
    if plan or not citations:
        show_plan([*(config or []), *(more or [])])


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="published checkpoint: HiFi-GAN, HiFi++, or the original FINALLY's")],
    output: Annotated[str, typer.Argument(metavar="OUT.ckpt", help="checkpoint to write")],
    network: Annotated[list[str], typer.Option(help="network it contains, e.g. hifigan_gen; twice for mpd and msd")],
    experiment: Annotated[str | None, typer.Option(help="experiment file that describes the network")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="network argument, overriding its default")
    ] = None,
) -> None:
    """Convert a published checkpoint to this package's format. Every key must match; those that do not are listed."""
    from finallyse.models.convert import convert, parse_arguments

    for line in convert(source, output, network, experiment, parse_arguments(arg or [])):
        print(line)
    print(f"{output} written")


@app.command()
def models(
    seconds: Annotated[float, typer.Option(min=0.1, help="length of the clip for counting operations")] = 1.024,
    card: Annotated[
        str | None, typer.Option(metavar="NAME | FILE", help="print a checkpoint's model card instead")
    ] = None,
) -> None:
    """List the trained networks that come with the package, and the networks that can be trained.

    For the latter: paper, parameters, input, output, multiply-accumulate operations per second of audio.
    """
    if card:
        from finallyse.models.checkpoint import load_checkpoint
        from finallyse.pretrained import checkpoint_file

        loaded = load_checkpoint(checkpoint_file(card))
        print(loaded.card or f"{loaded.path}: without a model card (`finallyse pack --card` embeds one)")
        return
    from finallyse.models.table import show

    show(seconds)


def main() -> None:
    """Entry point of the `finallyse` command."""
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
