"""Speech enhancement with HiFi-GAN, HiFi++ and FINALLY: networks, losses, data, training, measurement."""

__version__ = "0.1.0"
