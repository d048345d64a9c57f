"""Simulated rooms: impulse responses of random rooms with random places of the speaker and the microphone.

pyroomacoustics computes early reflections as image sources and the tail by ray tracing (Scheibler et al., ICASSP 2018,
arXiv 1710.04196).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finallyse.audio.io import write_wav
from finallyse.progress import Progress

DIMENSIONS_M = ((3.0, 10.0), (3.0, 8.0), (2.4, 4.0))  # length, width, height
HEIGHT_M = (1.0, 1.9)  # of mouths and microphones
WALL_M = 0.5  # least distance from the walls
DISTANCE_M = (0.3, 4.0)  # between the speaker and the microphone
IMAGE_ORDER, RAYS = 3, 3000


def simulate_rooms(folder: str | Path, count: int, rate: int, rt60_s: tuple[float, float], seed: int) -> None:
    """Write `room<number>.wav` of `count` rooms, float WAV at `rate` Hz, to `folder`; existing ones are kept.

    rt60_s: [min, max] reverberation time, in seconds. Each room depends on the seed and its number only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress("simulating rooms", count, "rooms")
    try:
        for number in range(count):
            path = folder / f"room{number:04d}.wav"
            if not path.is_file():
                write_wav(path, room_response(np.random.default_rng([seed, number]), rate, rt60_s), rate, "FLOAT")
            progress.add(1)
    finally:
        progress.close()


def room_response(rng: np.random.Generator, rate: int, rt60_s: tuple[float, float]) -> np.ndarray:
    """The impulse response of one random room, float32 [T]."""
    import pyroomacoustics as pra  # takes a second

    while True:
        dimensions = [rng.uniform(*limits) for limits in DIMENSIONS_M]
        rt60 = rng.uniform(*rt60_s)
        try:
            absorption, _ = pra.inverse_sabine(rt60, dimensions)
            break
        except ValueError:  # so large a room cannot be so dry
            continue
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
