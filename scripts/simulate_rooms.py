"""Simulate random rooms, whose impulse responses serve as a corpus: one 32-bit float WAV each.

python scripts/simulate_rooms.py --into resources/unpacked/simulated-rooms --count 1000 --rt60 0.1 0.8
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

from finallyse import atomic
from finallyse.corpora.rooms import simulate_rooms
from finallyse.errors import one_line_errors


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", required=True, help="output folder")
    parser.add_argument("--count", required=True, type=int, help="number of rooms")
    parser.add_argument("--rate", type=int, default=48000, help="sample rate, Hz (default: 48000)")
    parser.add_argument(
        "--rt60", type=float, nargs=2, required=True, metavar=("MIN", "MAX"), help="reverberation time, seconds"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the rooms (default: 0)")
    parser.add_argument("--marker", help="file to write when all rooms are there")
    options = parser.parse_args()
    simulate_rooms(options.into, options.count, options.rate, tuple(options.rt60), options.seed)
    if options.marker:
        atomic.write_bytes(Path(options.marker), f"{options.count} rooms\n".encode())


if __name__ == "__main__":
    with one_line_errors():
        main()
