"""Base class of the trainers: the networks of an experiment, and how a batch updates each of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from finallyse.errors import UserError
from finallyse.training.batches import Batch
from finallyse.training.clipping import Clipper
from finallyse.training.clock import Clock
from finallyse.training.cpu import use_phases
from finallyse.training.criteria import Criteria
from finallyse.training.distributed import Group
from finallyse.training.handover import count_parameters, freeze_all_but, take_over
from finallyse.training.optim import Guard, MovingAverage, SpectralNorms, Updater, frozen

log = logging.getLogger(__name__)

WAVLM_HOP = 320  # samples of 16 kHz audio between WavLM's frames; frame k sees samples 320 k .. 320 k + 400
WAVLM_FIELD = 400
BALANCE = "grad_wav_"  # with a loss's name: the norm of its weighted gradient at the generator's waveforms


class BaseTrainer:
    """Networks, losses and optimizers of one experiment.

    A trainer defines in `train_step` which updates make up a step, and in `synthesize_wavs` how a batch becomes
    waveforms; the loop around them is in the engine.

    Args:
        experiment: the resolved experiment as plain dicts (finallyse.config.Experiment).
        group: the processes that train together.
        item_keys: keys of the dataset's items.
        resumes: the weights will come from a saved state, so none are loaded from another stage.
    """

    adversarial = True  # whether the trainer uses discriminators

    def __init__(self, experiment: Mapping, group: Group, item_keys: set[str], resumes: bool = False):
        from finallyse.models import models_registry

        self.group, self.device = group, group.device
        self.clock = Clock()
        self.bf16 = experiment["train"]["precision"] == "bf16"
        self.sub_batch_size = experiment["data"]["sub_batch_size"]
        self.balance_step, self.balance_due = experiment["train"]["balance_step"], False
        seed, options = experiment["exp"]["seed"], experiment["generator"]
        parts = experiment["discriminators"]

        torch.manual_seed(seed)
        self.generator: nn.Module = models_registry[options["name"]](**options["args"])
        torch.manual_seed(seed + 1)  # of their own, so that they do not depend on the generator's size
        self.discriminators = nn.ModuleDict(
            {name: models_registry[name](**(part or {}).get("args", {})) for name, part in parts["parts"].items()}
        )
        if not resumes:
            self._take_over(options, parts)
        self.wavlm = self._load_wavlm(experiment["wavlm"])
        trained = freeze_all_but(self.generator, options["train_only"])
        self.generator.to(self.device).train()
        self.discriminators.to(self.device).train()
        self._describe(options["name"], trained)

        self.generator_criteria = Criteria(experiment["losses"]["generator"], "generator").to(self.device)
        self.discriminator_criteria = Criteria(experiment["losses"]["discriminator"], "discriminator").to(self.device)
        self._check(item_keys)

        clip = experiment["train"]["clip"]

        def updater(parameters, section: Mapping) -> Updater:
            clipper = Clipper(clip["mode"], clip["norm"], clip["quantile"], clip["window"], self.device)
            return Updater(parameters, section["optimizer"], section["scheduler"], clipper, self.guard, group)

        self.guard = Guard(experiment["train"]["on_nonfinite"], self.device)
        self.generator_updater = updater(trained, options)
        self.discriminator_updater = updater(self.discriminators.parameters(), parts) if self.discriminators else None
        self.discriminator_updates = parts["updates_per_step"]
        self.step = 0
        decay, steps = options["ema_decay"], experiment["train"]["steps"]
        self.average = None if decay is None else MovingAverage(self.generator, decay)
        if decay is not None and 1 / (1 - decay) > steps:
            log.warning(
                "generator.ema_decay=%g averages over %d steps, the run has train.steps=%d: it will not get there",
                decay,
                round(1 / (1 - decay)),
                steps,
            )
        self.generator_norms = SpectralNorms(self.generator)
        self.discriminator_norms = SpectralNorms(self.discriminators)

        if self.device.type == "cpu":
            use_phases(self.discriminators)
        self.compiled = experiment["train"]["compile"]
        if self.compiled:
            if self.balance_step:
                # otherwise compiled code may overwrite buffers of its backward pass, which can then run only once
                functorch.donated_buffer = False
            # compile each of the few shapes separately: dynamic-shape kernels would be slower, and not all compile
            for network in (self.generator, *self.discriminators.values()):
                network.compile(dynamic=False)

    # ----------------------------------------------------------------------------------------------- for each trainer

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Make one step's updates; returns what `update_generator` and `update_discriminators` return."""
        raise NotImplementedError

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        """The generator's waveforms [B, 1, T] at `output_rate` for a batch of inputs."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ for the engine

    @property
    def output_rate(self) -> int:
        """Sample rate of the generator's output, Hz."""
        return int(self.generator.output_rate)

    def updaters(self) -> dict[str, Updater]:
        """The updaters, by the part whose parameters they update."""
        updaters = {"generator": self.generator_updater, "discriminator": self.discriminator_updater}
        return {name: updater for name, updater in updaters.items() if updater}

    def begin(self, step: int, epoch: int) -> None:
        """Prepare step `step` (counted from 0), before which `epoch` epochs have been completed."""
        self.step = step
        for updater in self.updaters().values():
            updater.begin(step, epoch)
        self.generator_norms.advance()
        self.balance_due = bool(self.balance_step) and (step == 0 or (step + 1) % self.balance_step == 0)

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

    def weights(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """For a checkpoint: state_dicts of the generator (averaged, if that is kept) and of each discriminator."""
        generator = self.average.weights if self.average else self.generator.state_dict()
        return dict(generator), {name: network.state_dict() for name, network in self.discriminators.items()}

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

    # ---------------------------------------------------------------------------------------------- parts of a step

    def generate(self, *inputs: Tensor) -> Tensor:
        """The generator's output in float32."""
        with self.clock("generator"), self._autocast():
            return self.generator(*inputs).float()

    def ssl_features(self, batch: Batch) -> Tensor:
        """WavLM's last hidden state [B, D, F] for the input of each item, computed on its context if items have one.

        WavLM sees the whole `context_wav`; the frames kept are those of the segment, which starts at sample `start`.
        """
        if "ssl" in batch:
            return batch["ssl"]
        segment = batch["input_wav"].squeeze(1)
        with self.clock("wavlm"), self._autocast():
            if "context_wav" not in batch:
                return self.wavlm.last_hidden_state(segment)
            features = self.wavlm.last_hidden_state(batch["context_wav"])
        frames = (segment.shape[-1] - WAVLM_FIELD) // WAVLM_HOP + 1
        kept = batch["start"].view(-1, 1, 1) // WAVLM_HOP + torch.arange(frames, device=features.device)
        return features.gather(2, kept.expand(-1, features.shape[1], -1))

    def update_discriminators(self, pieces: list[Batch]) -> dict[str, Tensor]:
        """Train the discriminators to distinguish real from generated waveforms, `updates_per_step` times per batch."""
        result = {}
        if self.discriminator_updater:
            for _ in range(self.discriminator_updates):
                result = self._update_discriminators(pieces)
        return result

    def _update_discriminators(self, pieces: list[Batch]) -> dict[str, Tensor]:
        self.discriminator_norms.advance()
        losses = []
        for piece in pieces:
            if "wav_hat" not in piece:
                with torch.set_grad_enabled(len(pieces) == 1):  # the generator's update reuses a single piece's graph
                    piece["wav_hat"] = self.synthesize_wavs(piece)
            logits, maps = self.discriminate(torch.cat([piece["wav"], piece["wav_hat"].detach()]))
            self.clock.backward_from("discriminator", *logits)
            with self.clock("losses"):
                inputs = {
                    "logits_real": [both[: len(piece)] for both in logits],
                    "logits_fake": [both[len(piece) :] for both in logits],
                    "fmaps_real": [[both[: len(piece)] for both in each] for each in maps],
                    "fmaps_fake": [[both[len(piece) :] for both in each] for each in maps],
                }
                del logits, maps
                total, values, _ = self.discriminator_criteria(inputs)
                (total * piece.share).backward()
            losses.append(torch.cat([total.detach().view(1), values]) * piece.share)
        return self._finish("discriminator", self.discriminator_criteria, self.discriminator_updater, losses)

    def update_generator(self, pieces: list[Batch]) -> dict[str, Tensor]:
        """Train the generator. The discriminators are frozen: gradients flow through them, but not to their weights.

        Returns scalars on the device: the weighted sum of the losses, each loss, the gradient norm, 1.0 if the update
        was skipped because a value was not finite, and on the steps of `train.balance_step` the norm of each weighted
        loss's gradient at the global batch's waveforms.
        """
        losses, squares = [], []
        with frozen(self.discriminators):
            for piece in pieces:
                wav_hat = piece.tensors.pop("wav_hat", None)
                if wav_hat is None or not wav_hat.requires_grad:
                    wav_hat = self.synthesize_wavs(piece)
                self.clock.backward_from("generator", wav_hat)
                inputs = self._generator_inputs(piece, wav_hat)
                with self.clock("losses"):
                    total, values, terms = self.generator_criteria(inputs)
                    if self.balance_due:
                        squares.append(self._squared_gradients(terms, wav_hat) * piece.share**2)
                    (total * piece.share).backward()
                losses.append(torch.cat([total.detach().view(1), values]) * piece.share)
        result = self._finish("generator", self.generator_criteria, self.generator_updater, losses)
        if squares:
            norms = self.group.sum(torch.stack(squares).sum(0)).sqrt().float()
            result |= {
                f"{BALANCE}{name}": norm for name, norm in zip(self.generator_criteria.names, norms, strict=True)
            }
        if self.average:
            with self.clock("optimizer"):
                self.average.update(self.generator, self.step)
        return result

    def _squared_gradients(self, terms: list[Tensor], wav_hat: Tensor) -> Tensor:
        """Squared norm of each term's gradient at wav_hat: float64 [N]. Keeps the graph for the backward pass."""
        squares = []
        for term in terms:
            with self.clock("losses"):  # re-entered: the last backward pass may have ended in another kind
                gradient = None
                if term.requires_grad:
                    (gradient,) = torch.autograd.grad(term, wav_hat, retain_graph=True, allow_unused=True)
                # in float64: the square of a large finite float32 may overflow
                squares.append(wav_hat.new_zeros((), dtype=torch.float64) if gradient is None else _square(gradient))
        return torch.stack(squares)

    def _generator_inputs(self, piece: Batch, wav_hat: Tensor) -> dict:
        """The inputs of the generator's losses, and only those."""
        needs = self.generator_criteria.needs
        wav = piece["wav"]
        inputs = {"wav": wav, "wav_hat": wav_hat, "sample_rate": self.output_rate, "wavlm": self.wavlm}
        if "mel_for_loss" in needs:
            inputs["mel_for_loss"] = piece["mel_for_loss"]
        if needs & {"logits_real", "fmaps_real"}:
            with torch.no_grad():
                inputs["logits_real"], inputs["fmaps_real"] = self.discriminate(wav)
        if needs & {"logits_fake", "fmaps_fake"}:
            logits, maps = inputs["logits_fake"], inputs["fmaps_fake"] = self.discriminate(wav_hat)
            self.clock.backward_from("discriminator", *logits, *(m for each in maps for m in each))
        return inputs

    def discriminate(self, wav: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Logits and feature maps of all sub-discriminators of all discriminators, in order."""
        all_logits, all_maps = [], []
        with self.clock("discriminator"), self._autocast():
            for discriminator in self.discriminators.values():
                logits, maps = discriminator(wav)
                all_logits += logits
                all_maps += maps
        return all_logits, all_maps

    def _finish(self, of: str, criteria: Criteria, updater: Updater, losses: list[Tensor]) -> dict[str, Tensor]:
        with self.clock("optimizer"):
            total, norm, withheld = updater.update(torch.stack(losses).sum(0))
        names = [of, *criteria.names]
        return {**dict(zip(names, total, strict=True)), f"grad_norm_{of}": norm, f"withheld_{of}": withheld}

    # -------------------------------------------------------------------------------------------------- setting up

    def _autocast(self):
        # re-entered for each network: autocast's cache of cast weights must not outlive an update or a freeze
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _take_over(self, generator: Mapping, discriminators: Mapping) -> None:
        from finallyse.models.checkpoint import load_checkpoint

        if generator["init_from"]:
            checkpoint = load_checkpoint(generator["init_from"])
            take_over(self.generator, checkpoint.generator, generator["init_from"], generator["train_only"])
        if discriminators["init_from"]:
            source = discriminators["init_from"]
            checkpoint = load_checkpoint(source)
            for name, network in self.discriminators.items():
                if name not in checkpoint.discriminators:
                    raise UserError(f"discriminators.init_from: {source} holds no discriminator {name!r}")
                take_over(network, checkpoint.discriminators[name], f"{source} ({name})")

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
        for key in ("wav", *(("mel",) if kind == "mel" else ("input_wav",))):
            if key not in item_keys:
                raise UserError(f"data.train: items hold {sorted(item_keys)}, but not {key!r}, which this needs")
        why = {"wavlm": "set `wavlm` to the folder of WavLM's weights", "mel_for_loss": "data.train gives none"}
        if self.discriminators:
            of_discriminators = {"logits_real", "logits_fake", "fmaps_real", "fmaps_fake"}
        else:
            of_discriminators = set()
            why |= dict.fromkeys(
                ("logits_real", "logits_fake", "fmaps_real", "fmaps_fake"), "there are no discriminators"
            )
        offered = {"wav", "wav_hat", "sample_rate", *of_discriminators} | (item_keys & {"mel_for_loss"})
        if self.wavlm is not None:
            offered.add("wavlm")
        self.generator_criteria.check(offered, why)
        self.generator_criteria.check_level()
        if self.discriminators:
            self.discriminator_criteria.check(of_discriminators, why)

    def _describe(self, name: str, trained: list[nn.Parameter]) -> None:
        training = sum(p.numel() for p in trained)
        log.info("%s: %d parameters, %d of them train", name, count_parameters(self.generator), training)
        for part, network in self.discriminators.items():
            log.info("%s: %d parameters", part, count_parameters(network))


def _square(gradient: Tensor) -> Tensor:
    return gradient.double().square().sum()
