"""Simulated rooms: impulse responses of random rooms with random places of the speaker and the microphone.

pyroomacoustics computes early reflections as image sources and the tail by ray tracing (Scheibler et al., ICASSP 2018,
arXiv 1710.04196).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from finallyse import atomic
from finallyse.audio.io import write_wav
from finallyse.errors import UserError
from finallyse.progress import Progress

DIMENSIONS_M = ((3.0, 10.0), (3.0, 8.0), (2.4, 4.0))  # length, width, height
HEIGHT_M = (1.0, 1.9)  # of mouths and microphones
WALL_M = 0.5  # least distance from the walls
DISTANCE_M = (0.3, 4.0)  # between the speaker and the microphone
IMAGE_ORDER, RAYS = 3, 3000
ATTEMPTS = 1000  # to find a room that can have a reverberation time


def simulate_rooms(folder: str | Path, count: int, rate: int, rt60_s: tuple[float, float], seed: int) -> None:
    """Write the impulse responses of `count` rooms, `room<number>.wav`, to `folder`: float WAV.

    Rooms of an interrupted run with the same settings are kept, all others of the folder are removed.

    Args:
        folder: output folder.
        count: number of rooms.
        rate: sample rate, Hz.
        rt60_s: [min, max] reverberation time, s.
        seed: each room is a function of the settings and its number alone.

    Raises UserError if no room has such a reverberation time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"room{number:04d}.wav" for number in range(count)]
    settings = json.dumps({"rate": rate, "rt60_s": list(rt60_s), "seed": seed}).encode()
    written = folder / "settings.json"
    same = written.is_file() and written.read_bytes() == settings
    for path in set(folder.glob("room*.wav")) - (set(paths) if same else set()):
        path.unlink()
    atomic.write_bytes(written, settings)
    with Progress("simulating rooms", count, "rooms") as progress:
        for number, path in enumerate(paths):
            if path.is_file():
                progress.keep(1)
                continue
            write_wav(path, room_response(np.random.default_rng([seed, number]), rate, rt60_s), rate, "FLOAT")
            progress.add(1)


def room_response(rng: np.random.Generator, rate: int, rt60_s: tuple[float, float]) -> np.ndarray:
    """The impulse response of one random room, float32 [T]. Raises UserError if none has such a reverberation time."""
    import pyroomacoustics as pra  # takes a second

    for _ in range(ATTEMPTS):
        dimensions = [rng.uniform(*limits) for limits in DIMENSIONS_M]
        rt60 = rng.uniform(*rt60_s)
        try:
            absorption, _ = pra.inverse_sabine(rt60, dimensions)
            break
        except ValueError:  # so large a room cannot be so dry
            continue
    else:
        raise UserError(f"rooms.rt60_s: no room is as dry as {list(rt60_s)} s; try 0.1 s and more")
    pra.random.seed(int(rng.integers(2**31)))  # of the rays
    room = pra.ShoeBox(
        dimensions,
        fs=rate,
        materials=pra.Material(absorption),
        max_order=IMAGE_ORDER,
        ray_tracing=True,
        air_absorption=True,
    )
    room.set_ray_tracing(n_rays=RAYS, receiver_radius=0.3)
    mouth, microphone = _places(rng, dimensions)
    room.add_source(mouth)
    room.add_microphone(microphone)
    room.compute_rir()
    return np.asarray(room.rir[0][0], np.float32)


def _places(rng: np.random.Generator, dimensions: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the speaker and the microphone, m."""
    low = np.array([WALL_M, WALL_M, HEIGHT_M[0]])
    high = np.array([dimensions[0] - WALL_M, dimensions[1] - WALL_M, HEIGHT_M[1]])
    while True:
        mouth, microphone = rng.uniform(low, high), rng.uniform(low, high)
        if DISTANCE_M[0] <= np.linalg.norm(mouth - microphone) <= DISTANCE_M[1]:
            return mouth, microphone
