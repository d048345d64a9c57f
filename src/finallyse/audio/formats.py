"""Which files of a folder are recordings: by their names, or, for names that say nothing, by how they begin."""

from __future__ import annotations

from pathlib import Path

# fmt: off
# Audio, and video with a sound track. What is called so and is none is an error; other files are left out in silence.
SUFFIXES = frozenset(
    """
    .3g2 .3gp .aa .aac .aax .ac3 .adts .aif .aifc .aiff .alac .amr .amv .ape .apc .aptx .asf .ast .au .avi .avr .awb
    .bwf .caf .dff .divx .dsf .dts .dtshd .dv .eac3 .ec3 .f4a .f4b .f4v .flac .flv .g722 .g723 .g726 .g729 .gsm .htk
    .iff .ircam .l16 .m1a .m2a .m2ts .m4a .m4b .m4p .m4r .m4v .mj2 .mka .mkv .mlp .mov .mp1 .mp2 .mp3
    .mp4 .mpa .mpc .mpeg .mpg .mpga .mts .mxf .nist .nut .nsv .oga .ogg .ogm .ogv .ogx .oma .opus .paf .pcm .pvf .qoa
    .qt .ra .ram .raw .rf64 .rm .rmvb .sd2 .sds .sf .snd .sph .spx .svx .tak .thd .tta .vob .voc .vox .vqf .w64
    .wav .wave .weba .webm .wma .wmv .wtv .wv .xi .xma
    """.split()  # noqa: SIM905
)
# How files of audio begin whose names do not say so, such as those of recorders and of media servers.
MAGIC = (
    (0, b"RIFX"), (0, b"RF64"), (0, b"BW64"), (0, b"riff\x2e\x91\xcf\x11"), (0, b".snd"), (0, b"fLaC"),
    (0, b"OggS"), (0, b"ID3"), (0, b"\xff\xfb"), (0, b"\xff\xf3"), (0, b"\xff\xf2"), (0, b"\xff\xfa"),
    (0, b"\xff\xf1"), (0, b"\xff\xf9"), (0, b"caff"), (0, b"wvpk"), (0, b"MAC "), (0, b"TTA1"), (0, b"#!AMR"),
    (0, b"\x1aE\xdf\xa3"), (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), (0, b"NIST_1A"), (0, b"FLV\x01"), (0, b"\x0bw"),
    (0, b"\x00\x00\x01\xba"), (0, b"G\x40"), (4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"),
)
# Photographs in the container of MP4.
IMAGES = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"crx ")
# fmt: on


def is_recording(path: Path) -> bool:
    """Whether a file is taken for audio, by its suffix or its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():  # opening a pipe would wait
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(16)
    except OSError:
        return False
    if begin[:4] in (b"RIFF", b"FORM"):  # containers of other things too, such as WebP images
        return begin[8:12] in (b"WAVE", b"AVI ", b"AIFF", b"AIFC", b"8SVX")
    if begin[4:8] == b"ftyp" and begin[8:12] in IMAGES:
        return False
    return any(begin[at : at + len(magic)] == magic for at, magic in MAGIC)
