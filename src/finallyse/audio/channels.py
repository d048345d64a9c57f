"""Orders of channels: WAV's, in which everything is processed, and Vorbis's, in which Ogg files store them."""

from __future__ import annotations

from collections.abc import Sequence

# FFmpeg's names of the speakers, in the order of the bits of WAV's dwChannelMask.
WAV_SPEAKERS = (
    "FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR",
)  # fmt: skip
# Position in WAV's order of each channel in Vorbis's, by number of channels (Vorbis I specification, section 4.3.9,
# which RFC 7845 adopts for Opus). Up to two channels, four, and more than eight are in the same order.
VORBIS_ORDER = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 4, 5, 3),
    7: (0, 2, 1, 5, 6, 4, 3),
    8: (0, 2, 1, 6, 7, 4, 5, 3),
}


def native_order(channels: Sequence[str]) -> tuple[list[int] | None, tuple[str, ...]]:
    """Indices that bring channels (FFmpeg's names) into WAV's order, and their names in it.

    The indices are None where nothing changes. Channels that are no speakers of WAV's, such as those of Ambisonics, or
    that occur twice, stay in their order, and the names are ().
    """
    if len(set(channels)) < len(channels) or not set(channels) <= set(WAV_SPEAKERS):
        return None, ()
    order = sorted(range(len(channels)), key=lambda index: WAV_SPEAKERS.index(channels[index]))
    return (None if order == [*range(len(channels))] else order), tuple(channels[index] for index in order)


def channel_mask(speakers: Sequence[str]) -> int:
    """WAV's dwChannelMask of speakers; 0, which means unknown, for none."""
    return sum(1 << WAV_SPEAKERS.index(speaker) for speaker in speakers)
