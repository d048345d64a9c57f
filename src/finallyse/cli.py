"""The `finallyse` command. Each subcommand defers its imports until it is called, so that --help is instant."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from finallyse import __version__
from finallyse.errors import one_line_errors

REPEATED = {"action": "append", "default": []}  # an option that may be given several times


def positive(text: str) -> int:
    """Type of options that must be 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def above_zero(text: str) -> float:
    """Type of options that must be a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def status(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Show which outputs exist, which jobs are running, and the step and time left of each training."""
    _add_pipeline(parser)
    text = "show the trainings only, again and again until Ctrl-C (default: every 5 s); once if not on a terminal"
    parser.add_argument("--watch", nargs="?", const=5.0, action=_Seconds, metavar="SECONDS", help=text)
    options = parser.parse_intermixed_args(words)
    from finallyse.status import show, watch

    arguments = [*options.config, *options.more]
    if options.watch is None:
        show(arguments)
    else:
        watch(arguments, options.watch)


class _Seconds(argparse.Action):
    """A number of seconds, which may be left out also where a config file or a KEY=VALUE follows."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            seconds = float(values)
        except ValueError:
            seconds, namespace.config = self.const, [*namespace.config, values]
        if not 0.1 <= seconds <= 86400:
            parser.error(f"argument {option_string}: {values} is not between 0.1 and 86400 seconds")
        setattr(namespace, self.dest, seconds)


def config(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Print an experiment in full: the resolved value of every option and where it comes from."""
    add = parser.add_argument
    add("name", metavar="NETWORK|FILE", help="network of the pipeline, or experiment file")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="options to override, as for scripts/train.py")
    text = "config file over config/config.yaml, as for Snakemake; may be repeated"
    add("--configfile", **REPEATED, metavar="FILE", help=text)
    options = parser.parse_intermixed_args(words)
    from finallyse.provenance import show

    show(options.name, options.overrides, options.configfile)


def check(parser: ArgumentParser, words: Sequence[str]) -> int:
    """Find what would stop a training, without data, weights or a GPU: wrong paths, shapes, options, too little memory.

    Every network that the targets are made with is built, and makes one step with tensors that have no values. The
    workflow does the same when it starts. Exit status 2 if a training would fail.
    """
    add = parser.add_argument
    text = "network, sweep or checkpoint (default: all), or option of the pipeline to override"
    add("targets", nargs="*", metavar="TARGET|KEY=VALUE", help=text)
    text = "config file over config/config.yaml, as for Snakemake; may be repeated"
    add("--configfile", **REPEATED, metavar="FILE", help=text)
    options = parser.parse_intermixed_args(words)
    from finallyse.preflight import check as run

    overrides = [word for word in options.targets if "=" in word]
    return run([word for word in options.targets if "=" not in word], [*options.configfile, *overrides])


def enhance(parser: ArgumentParser, words: Sequence[str]) -> int:
    """Enhance recordings of any format, rate, length and number of channels, or the sound track of a video.

    Several inputs, or folders, are written to the folder OUTPUT; a single one also if OUTPUT ends with a slash. Files
    are written atomically. Of several inputs, those whose outputs exist are skipped. A file that cannot be enhanced
    does not stop the others; it is listed at the end and the exit status is 1.

    With --live, sound is enhanced while it comes in, until it ends or Ctrl-C is pressed: raw samples from stdin to
    stdout, or INPUT mic (the microphone) and OUTPUT speaker (the loudspeaker), which need sounddevice:

      arecord -f S16_LE -r 16000 -t raw | finallyse enhance --live | aplay -f S16_LE -r 16000 -t raw
      finallyse enhance mic speaker --live
    """
    add, live = parser.add_argument, "--live" in words
    add("inputs", nargs="*" if live else "+", metavar="INPUT", help="recordings or folders of them; -: stdin")
    if not live:
        add("output", metavar="OUTPUT", help="output file, or folder for several inputs; -: WAV to stdout")
    text = "trained network: results/NETWORK.ckpt, an export of it, or one that comes with the package (default: small)"
    add("--checkpoint", metavar="NAME|FILE", help=text)
    text = "sample rate of the output, Hz (default: the network's or the input's, whichever is higher)"
    add("--rate", type=int, metavar="HZ", help=text)
    add("--format", default="wav", help="output format in a folder: wav, flac, ogg, opus, mp3 (default: %(default)s)")
    add("--subtype", help="sample format of WAV and FLAC: PCM_16 (default), PCM_24, FLOAT")
    add("--dither", action="store_true", help="add triangular dither before rounding to 16 or 24 bits")
    add("--keep-tags", action="store_true", help="copy title, artist, album, comment, date, genre and copyright")
    add("--keep-times", action="store_true", help="give outputs the times of modification of the inputs")
    add("--accept-cut", action="store_true", help="enhance what there is of recordings that are cut short or damaged")
    add("--force", action="store_true", help="overwrite existing files")
    add("--resume", action="store_true", help="skip a single input, too, whose output exists")
    text = "torch, onnx (ONNX Runtime; also without PyTorch), or auto: torch if it is installed (default: %(default)s)"
    add("--engine", default="auto", help=text)
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    text = "fp32, or bf16: faster, differs from fp32 by about -45 dB (default: %(default)s)"
    add("--precision", default="fp32", help=text)
    add("--batch", type=positive, metavar="N", help="windows per batch (default: 1 on a CPU, 4 on a GPU)")
    add("--chunk", type=float, default=20.48, metavar="S", help="window length in seconds (default: %(default)s)")
    add("--wavlm", metavar="DIR", help="folder of WavLM, if the path in the checkpoint no longer exists")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: one per core)")
    text = "Python file with the network, for a checkpoint that was trained with plugins; may be repeated"
    add("--plugin", **REPEATED, dest="plugins", metavar="FILE", help=text)
    of_live = _add_live(parser)
    options = vars(parser.parse_intermixed_args(words))
    if live:
        return _enhance_live(parser, options)
    if given := [name for name in of_live if options.pop(name) != parser.get_default(name)]:
        parser.error(f"argument {of_live[given[0]]}: only with --live")
    from finallyse.inference.command import run

    suffix, window_s = f".{options.pop('format').lower().lstrip('.')}", options.pop("chunk")
    return run(**options, suffix=suffix, window_s=window_s)


def _add_live(parser: ArgumentParser) -> dict[str, str]:
    """Adds the options of `enhance --live`, and returns the name and the spelling of each."""
    group = parser.add_argument_group("options of --live")
    text = "enhance while the sound comes in: INPUT is - (raw samples, the default) or mic, OUTPUT - or speaker"
    group.add_argument("--live", action="store_true", help=text)
    text = "raw samples, interleaved: s16le (16-bit integers) or f32le (32-bit floats) (default: %(default)s)"
    group.add_argument("--live-format", default="s16le", metavar="FORMAT", help=text)
    text = "sample rate of the input (default: the network's; others add the delay of a resampler)"
    group.add_argument("--live-rate", type=int, metavar="HZ", help=text)
    group.add_argument(
        "--live-channels", type=positive, default=1, metavar="N", help="in and out (default: %(default)s)"
    )
    text = "what is heard of the future: 0.04 (default): latency 0.14 s; 0.136: 0.24 s, and the output is as of a file"
    group.add_argument("--lookahead", type=float, default=0.04, metavar="S", help=text)
    text = "the network runs once in a multiple of this (default: %(default)s); longer: less work, more latency"
    group.add_argument("--live-block", type=float, default=0.02, metavar="S", help=text)
    text = "largest magnitude that the sound will have, for networks that were trained at a fixed peak"
    group.add_argument("--peak", type=float, metavar="P", help=text)
    actions = group._group_actions
    return {action.dest: action.option_strings[0] for action in actions}


def _enhance_live(parser: ArgumentParser, options: dict) -> int:
    files = (
        "format",
        "subtype",
        "dither",
        "keep_tags",
        "keep_times",
        "accept_cut",
        "force",
        "resume",
        "chunk",
        "batch",
    )
    for name in files:
        if options.pop(name) != parser.get_default(name):
            parser.error(f"argument --{name.replace('_', '-')}: not with --live")
    ends = options.pop("inputs")
    if len(ends) > 2:
        parser.error("--live takes at most an INPUT and an OUTPUT")
    del options["live"]
    from finallyse.inference.command import run_live

    names = {"live_format": "format", "live_rate": "input_rate", "live_channels": "channels", "live_block": "block"}
    return run_live(ends, **{names.get(name, name): value for name, value in options.items()})


def page(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Write a page that enhances in the visitor's own browser: one HTML file that loads nothing from elsewhere.

    It works on a web server, as it is opened from a disk, and sent by e-mail.
    """
    add = parser.add_argument
    add("output", metavar="OUT_DIR", help="folder to write index.html into, and the licences of what it contains")
    text = "network: one that comes with the package (default: small), a checkpoint, or a file of `finallyse export`"
    add("--checkpoint", metavar="NAME|FILE", help=text)
    add("--force", action="store_true", help="replace an existing page")
    options = parser.parse_args(words)
    from finallyse.page.write import write

    path = write(options.output, options.checkpoint, options.force)
    print(f"{path} written ({path.stat().st_size / 1e6:.1f} MB): open it in a browser, or put it on a web server")


def serve(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Serve the page of `finallyse page`, and POST /enhance, with which a network of any size enhances on the server.

    curl --data-binary @talk.mp3 http://127.0.0.1:8080/enhance -o talk.wav
    """
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    text = "name under which the server is reached, beside localhost; may be repeated (default: any, unless local)"
    add("--name", **REPEATED, dest="names", metavar="HOST", help=text)
    add("--checkpoint", metavar="NAME|FILE", help="network of the server (default: small)")
    add("--engine", default="auto", help="what runs it: torch, onnx, or auto (default: torch where it is installed)")
    add("--max-mb", type=above_zero, default=200, metavar="MB", help="largest upload (default: %(default)s)")
    add("--max-minutes", type=above_zero, default=60, metavar="MIN", help="longest recording (default: %(default)s)")
    text = "recordings that are uploaded, wait and are enhanced at the same time (default: %(default)s); others get 503"
    add("--queue", type=positive, default=32, metavar="N", help=text)
    text = "seconds that an upload may take, and enhancing it (default: %(default)s)"
    add("--timeout", type=above_zero, default=600, metavar="S", help=text)
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="fp32 or bf16 (default: %(default)s)")
    add("--wavlm", metavar="DIR", help="folder of WavLM, if the path in the checkpoint no longer exists")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: PyTorch's own)")
    options = vars(parser.parse_args(words))
    from finallyse.serve.command import run

    run(**options)


def compare(parser: ArgumentParser, words: Sequence[str]) -> int:
    """Compare trained networks on the same recordings: one page with players, scores, curves and configurations.

    A SYSTEM is a checkpoint, a network that comes with the package, or RESULTS:NETWORK; NAME=SYSTEM gives it another
    name. The others are compared with the first. Without --data, networks of folders of results are compared by the
    validation items that they have in common. A recording that cannot be read does not stop the others; it is listed
    in the page and the exit status is 1.
    """
    from pathlib import Path

    add = parser.add_argument
    add("systems", nargs="+", metavar="SYSTEM", help="checkpoint, or RESULTS:NETWORK")
    text = "folder of recordings, or with folders clean/ and noisy/ of files of the same names"
    add("--data", type=Path, metavar="DIR", help=text)
    add("-o", "--output", type=Path, default=Path("compare.html"), metavar="FILE", help="page (default: %(default)s)")
    text = "metrics by name, or all that can be computed (default: the usual ones that can be)"
    add("--metrics", nargs="+", metavar="NAME", help=text)
    add("--resources", default="resources", metavar="DIR", help="folder that contains weights/ of metrics")
    add("--limit", type=positive, metavar="N", help="recordings, evenly spread over the list (default: all)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto, cpu, cuda (default: %(default)s)")
    add("--threads", type=positive, metavar="N", help="CPU threads that enhance (default: PyTorch's own)")
    add("--jobs", type=positive, metavar="N", help="processes that measure (default: one per core)")
    add("--wavlm", metavar="DIR", help="folder of WavLM, if the path in a checkpoint no longer exists")
    add("--utterances", type=positive, default=6, metavar="N", help="recordings with players (default: %(default)s)")
    text = "maximum length of a recording in a player, in s (default: %(default)s)"
    add("--seconds", type=positive, default=8, metavar="S", help=text)
    add("--force", action="store_true", help="overwrite an existing file")
    options = vars(parser.parse_intermixed_args(words))
    import signal

    from finallyse.report.comparison import Options, compare

    # on termination, remove temporary files
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    return compare(options.pop("systems"), options.pop("output"), Options(**options))


def pack(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Write a self-contained checkpoint to give away: without discriminators, with WavLM and a model card inside.

    The model card is also written beside it, as NAME.md: the one given, that of the checkpoint, or else one made of its
    configuration and the scores in its folder of results. docs/howto/share.md: how to sign it.
    """
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="trained network, results/NETWORK.ckpt")
    add("output", metavar="OUTPUT", help="checkpoint to write")
    add("--wavlm", metavar="DIR", help="folder of WavLM, if the path in the checkpoint no longer exists")
    add("--card", metavar="FILE", help="text file of a model card to embed")
    add("--safetensors", action="store_true", help="write a safetensors file, as for an OUTPUT of that suffix")
    add("--fp16", action="store_true", help="store the weights as 16-bit floats: half the size, nearly the same output")
    add("--force", action="store_true", help="overwrite existing files")
    options = vars(parser.parse_intermixed_args(words))
    from finallyse.inference.pack import pack as write

    print(write(options.pop("checkpoint"), options.pop("output"), **options))


def export(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Write a trained network as ONNX, which runs without PyTorch (`finallyse enhance --engine onnx`, browsers, ...).

    One graph from waveform to waveform; for a network that is conditioned on WavLM, that is a second file beside it.
    The output is compared with PyTorch's before the file is given its name.
    """
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="trained network: results/NETWORK.ckpt, or the name of a built-in one")
    add("output", metavar="OUT.onnx", help="file to write")
    kinds = parser.add_mutually_exclusive_group()
    text = "half the size, at the speed of 32 bits: weights in half precision"
    kinds.add_argument("--fp16", action="store_const", dest="precision", const="fp16", default="fp32", help=text)
    text = "a quarter of the size: weights of 8 bits"
    kinds.add_argument("--int8", action="store_const", dest="precision", const="int8", default="fp32", help=text)
    add("--wavlm", metavar="DIR", help="folder of WavLM, if the path in the checkpoint no longer exists")
    add("--force", action="store_true", help="overwrite existing files")
    options = vars(parser.parse_args(words))
    from finallyse.export.command import export as write

    write(options.pop("checkpoint"), options.pop("output"), **options)


def data(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Show the size, source and citation of the corpora and weights. `snakemake --cores 8 data` downloads them."""
    parser.add_argument("--plan", action="store_true", help="size of each corpus in bytes, and what is present")
    parser.add_argument("--citations", action="store_true", help="licence and citation of each corpus")
    _add_pipeline(parser)
    options = parser.parse_intermixed_args(words)
    from finallyse.corpora.plan import show_citations, show_plan

    if options.citations:
        show_citations()
    if options.plan or not options.citations:
        show_plan([*options.config, *options.more])


def convert(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Convert a published checkpoint to this package's format. Every key must match; those that do not are listed."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="published checkpoint: HiFi-GAN, HiFi++, or the original FINALLY's")
    add("output", metavar="OUT.ckpt", help="checkpoint to write")
    text = "network it contains, e.g. hifigan_gen; twice for mpd and msd"
    add("--network", **REPEATED, required=True, metavar="NAME", help=text)
    add("--experiment", metavar="FILE", help="experiment file that describes the network")
    add("--arg", **REPEATED, metavar="NAME=VALUE", help="network argument, overriding its default; may be repeated")
    add("--force", action="store_true", help="overwrite an existing file")
    options = parser.parse_intermixed_args(words)
    from finallyse.models.convert import convert, parse_arguments

    arguments = parse_arguments(options.arg)
    for line in convert(options.source, options.output, options.network, options.experiment, arguments, options.force):
        print(line)
    print(f"{options.output} written")


def new(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Write a class of your own, a loss, network, dataset, ..., that works as it is, and a test of its contract."""
    from finallyse.new import PARTS, write

    add = parser.add_argument
    add("kind", choices=PARTS, metavar="KIND", help=", ".join(PARTS))
    add("name", metavar="NAME", help="its name in configs: lower-case letters, digits and _")
    add("--into", default=".", metavar="DIR", help="folder of NAME.py and test_NAME.py (default: this one)")
    add("--force", action="store_true", help="overwrite existing files")
    options = parser.parse_args(words)
    part, test = write(options.kind, options.name, options.into, options.force)
    print(f"{part} written: name it under `plugins` in a config or an experiment. Its test: python -m pytest {test}")


def models(parser: ArgumentParser, words: Sequence[str]) -> None:
    """List the trained networks that come with the package, and the networks that can be trained.

    For the latter: paper, parameters, input, output, multiply-accumulate operations per second of audio.
    """
    text = "length of the clip for counting operations, at least 0.1 (default: %(default)s)"
    parser.add_argument("--seconds", type=float, default=1.024, metavar="S", help=text)
    parser.add_argument("--card", metavar="NAME|FILE", help="print the model card of a checkpoint instead")
    options = parser.parse_args(words)
    if options.seconds < 0.1:
        parser.error("argument --seconds: must be at least 0.1")
    if options.card:
        from finallyse.models.checkpoint import load_checkpoint
        from finallyse.pretrained import checkpoint_file

        loaded = load_checkpoint(checkpoint_file(options.card))
        print(loaded.card or f"{loaded.path}: without a model card (`finallyse pack --card` embeds one)")
        return
    from finallyse.models.table import show

    show(options.seconds)


def completion(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Print a script for tab completion of this command. bash: eval "$(finallyse completion bash)" in ~/.bashrc."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")
    shell = parser.parse_args(words).shell
    import shtab

    whole = ArgumentParser("finallyse")
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        described = _Described(add_help=False)
        with contextlib.suppress(_Described.Done):
            command(described, [])
        text = inspect.getdoc(command).splitlines()[0]
        one = commands.add_parser(name, parents=[described], help=text, description=text)
        for action in one._actions:
            action.choices = action.choices and list(action.choices)  # shtab takes a dictionary for more commands
            if action.metavar and any(kind in str(action.metavar) for kind in ("FILE", "DIR", "PUT", "CHECKPOINT")):
                action.complete = shtab.FILE
    print(shtab.complete(whole, shell))


class _Described(ArgumentParser):
    """A parser that only learns the options of a command: the command ends where it would parse them."""

    class Done(Exception):
        pass

    def parse_args(self, *arguments, **more):
        raise self.Done

    parse_intermixed_args = parse_args


def _add_pipeline(parser: ArgumentParser) -> None:
    kinds = "FILE|KEY=VALUE"
    parser.add_argument("more", nargs="*", metavar=kinds, help="config files over config/config.yaml, or overrides")
    parser.add_argument("--config", **REPEATED, metavar=kinds, help="the same, as for Snakemake; may be repeated")


USING = (enhance, page, serve, models, compare, pack, export, convert)  # trained networks
TRAINING = (data, config, check, status, new)  # them
COMMANDS = {command.__name__: command for command in (*USING, *TRAINING, completion)}


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of the `finallyse` command; `words`: the command line without its first word."""
    words = sys.argv[1:] if words is None else words
    listed = "\n".join(f"  {name:10} {inspect.getdoc(command).splitlines()[0]}" for name, command in COMMANDS.items())
    parser = ArgumentParser(
        "finallyse",
        description="Enhance speech; compare, pack, export and convert networks; watch over their training.",
        epilog=f"commands:\n{listed}\n\n`finallyse COMMAND --help` describes a command and its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"finallyse {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    if not words:
        parser.print_help()
        sys.exit(2)
    name = parser.parse_args(words[:1]).command
    parser = ArgumentParser(
        f"finallyse {name}",
        description=inspect.getdoc(COMMANDS[name]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    with one_line_errors():
        sys.exit(COMMANDS[name](parser, words[1:]))


if __name__ == "__main__":
    main()
