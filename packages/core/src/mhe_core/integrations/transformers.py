"""The regularizer in the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer

from mhe_core.errors import UserError
from mhe_core.network import NetworkRegularizer, unwrapped

__all__ = ["EnergyMixin", "EnergyTrainer"]

FILE = "energy.pt"

Base: Any = object  # for type checkers: some Trainer comes behind it


class EnergyMixin(Base):  # type: ignore[misc]
    """A Trainer that adds a :class:`~mhe_core.NetworkRegularizer`'s penalty to the loss.

    It is a mixin, as a callback cannot change the loss. It goes before the Trainer that it changes:
    ``class MyTrainer(EnergyMixin, SFTTrainer): pass``.

    Once for each step of the optimizer, in the last of the batches that are accumulated, the
    regularizer is updated with the first parameter group's learning rate, and the penalty's
    gradient is added to that of the loss, before it is clipped and averaged over processes. The
    logged ``loss`` has the penalty in it, and ``penalty`` (and ``penalty/LAYER`` with
    ``log_layers``) is logged beside it. The regularizer's state is in the checkpoints, in
    ``energy.pt``.

    Args:
        *args: the Trainer's.
        energy: keyword arguments of the NetworkRegularizer, such as ``{"hidden_weight": 0.1}``, or
            None for its defaults.
        log_layers: whether each layer's term is logged.
        **kwargs: the Trainer's.

    Raises:
        UserError: at the first step, if DeepSpeed trains the model.
    """

    def __init__(
        self,
        *args: Any,
        energy: Mapping[str, Any] | None = None,
        log_layers: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.energy, self.log_layers = dict(energy or {}), log_layers
        self.regularizer: NetworkRegularizer | None = None
        self._regularized: nn.Module | None = None
        self._penalty: Tensor | None = None
        self._saved_energy: dict[str, Any] | None = None

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's, with the penalty in the last batch of an optimizer step."""
        penalty: Tensor | float = 0.0
        if self.accelerator.sync_gradients:
            # Before the loss's backward pass, which averages gradients over processes.
            penalty = self._penalty = self._backward_of_penalty()
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss + penalty

    def _backward_of_penalty(self) -> Tensor:
        accelerator = self.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise UserError(
                "expected a Trainer without DeepSpeed, whose engine has one loss a step"
            )
        if self.regularizer is None or self._regularized is not unwrapped(self.model):
            self._regularized = unwrapped(self.model)
            # Its seeds are drawn as if they were not: a resumed run makes it at another step.
            device: torch.device = self.args.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self.regularizer = NetworkRegularizer(self.model, **self.energy)
            if self._saved_energy is not None:
                self.regularizer.load_state_dict(self._saved_energy)
                self._saved_energy = None
        assert self.optimizer is not None
        self.regularizer.update(self.optimizer.param_groups[0]["lr"])
        penalty: Tensor = self.regularizer()
        if penalty.requires_grad:
            accelerator.backward(penalty * accelerator.gradient_accumulation_steps)
        return penalty.detach().to(self.args.device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's, with the penalty of the last step beside the loss."""
        if "loss" in logs and self._penalty is not None and self.regularizer is not None:
            logs["penalty"] = self._penalty.item()
            if self.log_layers:
                terms = self.regularizer.weighted_terms("penalty/")
                logs |= {name: term.item() for name, term in terms.items()}
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = {} if self.regularizer is None else self.regularizer.state_dict()
        if state and self.args.should_save:
            torch.save(state, Path(output_dir, FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint, FILE)
        self.regularizer = self._saved_energy = None
        if file.exists():
            self._saved_energy = torch.load(file, map_location="cpu", weights_only=True)


class EnergyTrainer(EnergyMixin, Trainer):  # type: ignore[misc]
    """The Trainer with the penalty, see :class:`EnergyMixin`.

    Example:
        ::

            from mhe_core.integrations.transformers import EnergyTrainer

            trainer = EnergyTrainer(model, args, train_dataset=data, energy={"hidden_weight": 0.1})
    """
