"""The six trainers, in the order in which the workflow uses them. Each defines a step; `base` implements its parts."""

from __future__ import annotations

from torch import Tensor

from finallyse.training import trainers_registry
from finallyse.training.base import BaseTrainer
from finallyse.training.batches import Batch


@trainers_registry.register("hifigan_trainer")
class HifiganTrainer(BaseTrainer):
    """Vocoder, log-mel spectrogram -> waveform (HiFi-GAN, arXiv 2010.05646, section 2)."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        pieces = batch.split(self.sub_batch_size)
        return self.update_discriminators(pieces) | self.update_generator(pieces)

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        return self.generate(batch["mel"])


@trainers_registry.register("hifi++_trainer")
class HifippTrainer(BaseTrainer):
    """Bandwidth extension and denoising, waveform -> waveform (HiFi++, arXiv 2203.13086, section 3)."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        pieces = batch.split(self.sub_batch_size)
        return self.update_discriminators(pieces) | self.update_generator(pieces)

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        return self.generate(batch["input_wav"])


class FinallyTrainer(BaseTrainer):
    """Waveform and WavLM's features -> waveform (FINALLY, arXiv 2410.05920)."""

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        return self.generate(batch["input_wav"], self.ssl_features(batch))


@trainers_registry.register("finally_stage1_trainer")
class FinallyStage1Trainer(FinallyTrainer):
    """Regression in the feature space of WavLM (LMOS loss), without discriminators."""

    adversarial = False

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        batch["ssl"] = self.ssl_features(batch)  # once for the whole batch, however many pieces it has
        return self.update_generator(batch.split(self.sub_batch_size))


@trainers_registry.register("finally_stage2_trainer")
class FinallyStage2Trainer(FinallyTrainer):
    """Adversarial training at 16 kHz against multi-scale STFT discriminators."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        batch["ssl"] = self.ssl_features(batch)
        pieces = batch.split(self.sub_batch_size)
        return self.update_discriminators(pieces) | self.update_generator(pieces)


@trainers_registry.register("finally_stage3_pretrainer")
class FinallyStage3Pretrainer(FinallyStage1Trainer):
    """Stage 1's step for the 48 kHz head alone: `generator.train_only` freezes the weights learned in stage 2."""


@trainers_registry.register("finally_stage3_trainer")
class FinallyStage3Trainer(FinallyStage2Trainer):
    """Stage 2's step at 48 kHz; the perceptual losses (PESQ, UTMOS) come with the configuration."""
