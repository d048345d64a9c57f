"""The six trainers: networks, losses and optimizers of an experiment, and how a batch updates them.

`BaseTrainer.train_step` is the step of all of them; each adds how a batch becomes waveforms (`synthesize_wavs`). The
loop around the steps is in `engine`, the optimizers in `optim`.

Forward passes and updates are marked with `torch.profiler.record_function`: "wavlm", "generator", "discriminator",
"losses", "optimizer".
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.profiler import record_function

from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.checkpoint import load_checkpoint
from finallyse.options import Discriminators, Experiment, Generator, from_dict
from finallyse.training import trainers_registry
from finallyse.training.batches import Batch
from finallyse.training.clipping import Clipper
from finallyse.training.criteria import Criteria
from finallyse.training.distributed import Group
from finallyse.training.optim import Guard, MovingAverage, SpectralNorms, Updater, frozen
from finallyse.training.polyphase import use_polyphase_convolutions
from finallyse.training.pretrained import count_parameters, freeze_all_but, load_pretrained

log = logging.getLogger(__name__)

BALANCE = "grad_wav_"  # with a loss's name: the norm of its weighted gradient at the generator's waveforms
OF_DISCRIMINATORS = ("logits_real", "logits_fake", "fmaps_real", "fmaps_fake")  # inputs of losses


class BaseTrainer:
    """Networks, losses and optimizers of one experiment.

    Args:
        experiment: the complete experiment, also as nested dicts.
        group: the processes that train together.
        item_keys: keys of the dataset's items.
        resumes: the weights will come from a saved state, so none are loaded from another stage's checkpoint.

    Raises:
        UserError: if parts of the experiment are incompatible.
    """

    adversarial = True  # whether the trainer uses discriminators

    def __init__(self, experiment: Experiment | Mapping, group: Group, item_keys: set[str], resumes: bool = False):
        experiment = from_dict(Experiment, experiment)
        generator, discriminators, train = experiment.generator, experiment.discriminators, experiment.train
        self.group, self.device = group, group.device
        self.bf16 = train.precision == "bf16"
        self.sub_batch_size = experiment.data.sub_batch_size
        self.discriminator_updates = discriminators.updates_per_step
        self.balance_step, self.balance_due = train.balance_step, False
        self.step = 0

        torch.manual_seed(experiment.exp.seed)
        self.generator: nn.Module = models_registry[generator.name](**generator.args)
        torch.manual_seed(experiment.exp.seed + 1)  # so that they do not depend on the generator's size
        self.discriminators = nn.ModuleDict(
            {name: models_registry[name](**(part or {}).get("args", {})) for name, part in discriminators.parts.items()}
        )
        if not resumes:
            self._load_pretrained(generator, discriminators)
        self.wavlm = self._load_wavlm(experiment.wavlm)
        trained = freeze_all_but(self.generator, generator.train_only)
        self.generator.to(self.device).train()
        self.discriminators.to(self.device).train()
        for name, network in {generator.name: self.generator, **self.discriminators}.items():
            log.info("%s: %d parameters, %d trainable", name, *count_parameters(network))

        self.generator_criteria = Criteria(experiment.losses.generator, "generator").to(self.device)
        self.discriminator_criteria = Criteria(experiment.losses.discriminator, "discriminator").to(self.device)
        self._check(item_keys)

        def updater(parameters: Iterable[nn.Parameter], options: Generator | Discriminators) -> Updater:
            clip = train.clip
            clipper = Clipper(clip.mode, clip.norm, clip.quantile, clip.window, self.device)
            return Updater(parameters, options.optimizer, options.scheduler, clipper, self.guard, group)

        self.guard = Guard(train.on_nonfinite, self.device)
        self.generator_updater = updater(trained, generator)
        self.discriminator_updater = None
        if self.discriminators:
            self.discriminator_updater = updater(self.discriminators.parameters(), discriminators)
        self.generator_norms = SpectralNorms(self.generator)
        self.discriminator_norms = SpectralNorms(self.discriminators)
        decay, self.average = generator.ema_decay, None
        if decay is not None:
            self.average = MovingAverage(self.generator, decay)
            if 1 / (1 - decay) > train.steps:
                span = f"averages over {1 / (1 - decay):.0f} steps, the run has only train.steps={train.steps}"
                log.warning("generator.ema_decay=%g %s", decay, span)
        if self.device.type == "cpu":
            use_polyphase_convolutions(self.discriminators)
        self.compiled = train.compile
        if self.compiled:
            if self.balance_step:
                # otherwise compiled code may overwrite buffers of its backward pass, which can then run only once
                functorch.donated_buffer = False
            # compile each of the few shapes separately: dynamic-shape kernels would be slower, and not all compile
            for network in (self.generator, *self.discriminators.values()):
                network.compile(dynamic=False)

    # ------------------------------------------------------------------------------------------------------- the step

    def begin(self, step: int, epoch: int) -> None:
        """Prepare step `step` (counted from 0), before which `epoch` epochs have been completed."""
        self.step = step
        for updater in self.updaters().values():
            updater.begin(step, epoch)
        self.generator_norms.advance()
        self.balance_due = bool(self.balance_step) and (step == 0 or (step + 1) % self.balance_step == 0)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the discriminators, if there are any, then the generator.

        Returns:
            Scalars on the device, each for the generator and the discriminators: the weighted sum of the losses, each
            loss, `grad_norm_*`, and `skipped_*`, 1.0 if the update was skipped because a value was not finite. On the
            steps of `train.balance_step` also `grad_wav_*`, the norm of each weighted loss's gradient at the global
            batch's generated waveforms.
        """
        microbatches = batch.split(self.sub_batch_size)
        return self.update_discriminators(microbatches) | self.update_generator(microbatches)

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        """The generator's waveforms [B, 1, T] at `output_rate` for a batch of inputs."""
        raise NotImplementedError

    def update_discriminators(self, microbatches: list[Batch]) -> dict[str, Tensor]:
        """Train the discriminators to distinguish real from generated waveforms, `updates_per_step` times per batch."""
        result = {}
        for _ in range(self.discriminator_updates if self.discriminators else 0):
            result = self._update_discriminators(microbatches)
        return result

    def _update_discriminators(self, microbatches: list[Batch]) -> dict[str, Tensor]:
        self.discriminator_norms.advance()
        losses = []
        for batch in microbatches:
            if "wav_hat" not in batch:
                with torch.set_grad_enabled(len(microbatches) == 1):  # a single graph is reused to train the generator
                    batch["wav_hat"] = self.synthesize_wavs(batch)
            logits, maps = self.discriminate(torch.cat([batch["wav"], batch["wav_hat"].detach()]))
            with record_function("losses"):
                inputs = {
                    "logits_real": [both[: len(batch)] for both in logits],
                    "logits_fake": [both[len(batch) :] for both in logits],
                    "fmaps_real": [[both[: len(batch)] for both in each] for each in maps],
                    "fmaps_fake": [[both[len(batch) :] for both in each] for each in maps],
                }
                del logits, maps
                total, values, _ = self.discriminator_criteria(inputs)
            (total * batch.share).backward()
            losses.append(torch.cat([total.detach().view(1), values]) * batch.share)
        return self._update("discriminator", self.discriminator_criteria, self.discriminator_updater, losses)

    def update_generator(self, microbatches: list[Batch]) -> dict[str, Tensor]:
        """Train the generator. The discriminators are frozen: gradients flow through them, but not to their weights."""
        losses, squares = [], []
        with frozen(self.discriminators):
            for batch in microbatches:
                wav_hat = batch.tensors.pop("wav_hat", None)
                if wav_hat is None or not wav_hat.requires_grad:
                    wav_hat = self.synthesize_wavs(batch)
                inputs = self._generator_inputs(batch, wav_hat)
                with record_function("losses"):
                    total, values, terms = self.generator_criteria(inputs)
                if self.balance_due:
                    squares.append(_squared_gradients(terms, wav_hat) * batch.share**2)
                (total * batch.share).backward()
                losses.append(torch.cat([total.detach().view(1), values]) * batch.share)
        result = self._update("generator", self.generator_criteria, self.generator_updater, losses)
        if squares:
            norms = self.group.sum(torch.stack(squares).sum(0)).sqrt().float()
            names = [f"{BALANCE}{name}" for name in self.generator_criteria.names]
            result |= dict(zip(names, norms, strict=True))
        if self.average:
            with record_function("optimizer"):
                self.average.update(self.generator, self.step)
        return result

    def _generator_inputs(self, batch: Batch, wav_hat: Tensor) -> dict:
        """The inputs of the generator's losses, and only those."""
        needs = self.generator_criteria.needs
        wav = batch["wav"]
        inputs = {"wav": wav, "wav_hat": wav_hat, "sample_rate": self.output_rate, "wavlm": self.wavlm}
        if "mel_for_loss" in needs:
            inputs["mel_for_loss"] = batch["mel_for_loss"]
        if needs & {"logits_real", "fmaps_real"}:
            with torch.no_grad():
                inputs["logits_real"], inputs["fmaps_real"] = self.discriminate(wav)
        if needs & {"logits_fake", "fmaps_fake"}:
            inputs["logits_fake"], inputs["fmaps_fake"] = self.discriminate(wav_hat)
        return inputs

    def _update(self, name: str, criteria: Criteria, updater: Updater, losses: list[Tensor]) -> dict[str, Tensor]:
        """Step the optimizer; `losses`: of each microbatch, weighted by its share of the global batch."""
        with record_function("optimizer"):
            total, norm, skipped = updater.update(torch.stack(losses).sum(0))
        values = dict(zip([name, *criteria.names], total, strict=True))
        return {**values, f"grad_norm_{name}": norm, f"skipped_{name}": skipped}

    # ------------------------------------------------------------------------------------------------- forward passes

    def generate(self, *inputs: Tensor) -> Tensor:
        """The generator's output in float32."""
        with record_function("generator"), self._autocast():
            return self.generator(*inputs).float()

    def discriminate(self, wav: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Logits and feature maps of all sub-discriminators of all discriminators, in order."""
        all_logits, all_maps = [], []
        with record_function("discriminator"), self._autocast():
            for discriminator in self.discriminators.values():
                logits, maps = discriminator(wav)
                all_logits += logits
                all_maps += maps
        return all_logits, all_maps

    def ssl_features(self, batch: Batch) -> Tensor:
        """WavLM's last hidden state [B, D, F] for the input of each item, computed on its context if items have one.

        WavLM sees the whole `context_wav`; the frames kept are those of the segment, which starts at sample `start`.
        """
        if "ssl" in batch:
            return batch["ssl"]
        segment = batch["input_wav"].squeeze(1)
        if "context_wav" not in batch:
            return self.hidden_state(segment)
        features = self.hidden_state(batch["context_wav"])
        hop = self.wavlm.hop  # frame k sees samples hop k .. hop k + receptive_field
        frames = (segment.shape[-1] - self.wavlm.receptive_field) // hop + 1
        kept = batch["start"].view(-1, 1, 1) // hop + torch.arange(frames, device=features.device)
        return features.gather(2, kept.expand(-1, features.shape[1], -1))

    def hidden_state(self, wav: Tensor) -> Tensor:
        """WavLM's last hidden state [B, D, F] of waveforms [B, T]."""
        with record_function("wavlm"), self._autocast():
            return self.wavlm.last_hidden_state(wav)

    def _autocast(self) -> contextlib.AbstractContextManager:
        # re-entered for each network: autocast's cache of cast weights must not outlive an update or a freeze
        if self.device.type == "meta":  # shapes only; it knows no autocast
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextlib.contextmanager
    def inference(self):
        """The generator for inference: eval mode, no gradients, averaged weights if they are kept."""
        swapped = self.average.in_place(self.generator) if self.average else contextlib.nullcontext()
        # validation clips all have different lengths, each of which would be recompiled
        eager = torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()
        with swapped, eager, torch.no_grad():
            self.generator.eval()
            try:
                yield
            finally:
                self.generator.train()
                self.generator_norms.settle()

    # ---------------------------------------------------------------------------------------------------------- state

    @property
    def output_rate(self) -> int:
        """Sample rate of the generator's output, Hz."""
        return int(self.generator.output_rate)

    def updaters(self) -> dict[str, Updater]:
        """The updaters, by the part whose parameters they update."""
        updaters = {"generator": self.generator_updater, "discriminator": self.discriminator_updater}
        return {name: updater for name, updater in updaters.items() if updater}

    def weights(self) -> dict[str, dict]:
        """`generator` and `discriminators` of a checkpoint: state_dicts, of the averaged generator if one is kept."""
        return {
            "generator": dict(self.average.weights if self.average else self.generator.state_dict()),
            "discriminators": {name: network.state_dict() for name, network in self.discriminators.items()},
        }

    def state_dict(self) -> dict:
        """Everything that the next step depends on."""
        return {
            "generator": self.generator.state_dict(),
            "discriminators": self.discriminators.state_dict(),
            "average": self.average.weights if self.average else {},
            **{f"{name}_updater": updater.state_dict() for name, updater in self.updaters().items()},
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from `state_dict()`."""
        self.generator.load_state_dict(state["generator"])
        self.discriminators.load_state_dict(state["discriminators"])
        if self.average:
            for name, value in self.average.weights.items():
                value.copy_(state["average"][name])
        for name, updater in self.updaters().items():
            updater.load_state_dict(state[f"{name}_updater"])

    # ---------------------------------------------------------------------------------------------------------- setup

    def _load_pretrained(self, generator: Generator, discriminators: Discriminators) -> None:
        """Initialise networks from the checkpoints of `init_from`."""
        if source := generator.init_from:
            load_pretrained(self.generator, self._pretrained(source, "generator"), source, generator.train_only)
        if source := discriminators.init_from:
            weights = self._pretrained(source, "discriminators")
            for name, network in self.discriminators.items():
                if name not in weights:
                    raise UserError(f"discriminators.init_from: {source} has no discriminator {name!r}")
                load_pretrained(network, weights[name], f"{source} ({name})")

    def _pretrained(self, source: str, part: str) -> Mapping:
        """The `generator` or `discriminators` of a checkpoint."""
        return getattr(load_checkpoint(source), part)

    def _load_wavlm(self, folder: str | None) -> nn.Module | None:
        if folder is None:
            return None
        from finallyse.models.wavlm import WavLM  # imports transformers: seconds, needed by FINALLY only

        return WavLM(folder).to(self.device)

    def _check(self, item_keys: set[str]) -> None:
        """Raise a UserError, before the first step, if parts of the experiment are incompatible."""
        if self.discriminators and not self.adversarial:
            raise UserError("this trainer has no adversarial training; remove discriminators.parts or change `trainer`")
        if self.discriminators and not self.discriminator_criteria.names:
            raise UserError("discriminators.parts without losses.discriminator; add e.g. disc_loss: {weight: 1}")
        kind = self.generator.input_kind
        if kind == "wav+ssl" and self.wavlm is None:
            raise UserError("this generator takes WavLM's features; set `wavlm` to the folder of WavLM's weights")
        for key in ("wav", "mel" if kind == "mel" else "input_wav"):
            if key not in item_keys:
                raise UserError(
                    f"data.train: items have {sorted(item_keys)}, but not {key!r}, which this generator needs"
                )
        of_discriminators = set(OF_DISCRIMINATORS if self.discriminators else ())
        available = {"wav", "wav_hat", "sample_rate"} | of_discriminators | (item_keys & {"mel_for_loss"})
        available |= set() if self.wavlm is None else {"wavlm"}
        reasons = {
            "wavlm": "set `wavlm` to the folder of WavLM's weights",
            "mel_for_loss": "items of data.train have none",
            **dict.fromkeys(OF_DISCRIMINATORS, "there are no discriminators"),
        }
        self.generator_criteria.check(available, reasons)
        self.generator_criteria.check_level()
        if self.discriminators:
            self.discriminator_criteria.check(of_discriminators, reasons)


def _squared_gradients(terms: list[Tensor], wav_hat: Tensor) -> Tensor:
    """Squared norm of each term's gradient at wav_hat: float64 [N]. Keeps the graph for the backward pass."""
    squares = []
    for term in terms:
        gradient = None
        if term.requires_grad:
            (gradient,) = torch.autograd.grad(term, wav_hat, retain_graph=True, allow_unused=True)
        # in float64: the square of a large finite float32 may overflow
        zero = wav_hat.new_zeros((), dtype=torch.float64)
        squares.append(zero if gradient is None else gradient.double().square().sum())
    return torch.stack(squares)


# ---------------------------------------------------------------------------------------------------------------------
# The trainers, in the order in which the workflow uses them


@trainers_registry.register("hifigan_trainer")
class HifiganTrainer(BaseTrainer):
    """Vocoder, log-mel spectrogram -> waveform (HiFi-GAN, arXiv 2010.05646, section 2)."""

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        return self.generate(batch["mel"])


@trainers_registry.register("hifi++_trainer")
class HifippTrainer(BaseTrainer):
    """Bandwidth extension and denoising, waveform -> waveform (HiFi++, arXiv 2203.13086, section 3)."""

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        return self.generate(batch["input_wav"])


class FinallyTrainer(BaseTrainer):
    """Waveform and WavLM's features -> waveform (FINALLY, arXiv 2410.05920)."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        batch["ssl"] = self.ssl_features(batch)  # once, for all microbatches and updates
        return super().train_step(batch)

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        return self.generate(batch["input_wav"], self.ssl_features(batch))


@trainers_registry.register("finally_stage1_trainer")
class FinallyStage1Trainer(FinallyTrainer):
    """Regression in the feature space of WavLM (LMOS loss), without discriminators."""

    adversarial = False


@trainers_registry.register("finally_stage2_trainer")
class FinallyStage2Trainer(FinallyTrainer):
    """Adversarial training at 16 kHz against multi-scale STFT discriminators."""


@trainers_registry.register("finally_stage3_pretrainer")
class FinallyStage3Pretrainer(FinallyStage1Trainer):
    """Stage 1's step for the 48 kHz head alone: `generator.train_only` freezes the weights learned in stage 2."""


@trainers_registry.register("finally_stage3_trainer")
class FinallyStage3Trainer(FinallyStage2Trainer):
    """Stage 2's step at 48 kHz; the perceptual losses (PESQ, UTMOS) come with the configuration."""
