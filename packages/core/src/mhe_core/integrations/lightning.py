"""The regularizer in Lightning's training loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mhe_core.errors import UserError
from mhe_core.network import NetworkRegularizer

__all__ = ["EnergyCallback"]


class EnergyCallback(Callback):  # type: ignore[misc]  # of no type without Lightning
    """Adds a :class:`~mhe_core.NetworkRegularizer`'s penalty to what ``training_step`` returns.

    So it goes through Lightning's own loss scaling, accumulation and DistributedDataParallel or
    FSDP2 with the loss. Once for each step of the optimizer the regularizer is updated, with the
    first optimizer's learning rate, and the penalty is computed and logged. Where N batches are
    accumulated, that is in the first of them, N times: Lightning then divides by N.

    The regularizer is made when fitting starts. Its state, such as CoMHE's projections, is in the
    trainer's checkpoints.

    Args:
        *args: of the NetworkRegularizer, without the model.
        part: name of the submodule that is regularized, such as ``"model"``; by default all that
            the LightningModule holds.
        log: what is logged: ``"penalty"``, each ``"layers"`` besides, as ``penalty/NAME``, or
            ``"nothing"``.
        **kwargs: of the NetworkRegularizer.

    Attributes:
        regularizer: the NetworkRegularizer, None before the first fit.

    Raises:
        UserError: when fitting starts, if the module optimizes by hand: there, add
            ``regularizer()`` to the loss; or if ``log`` is none of these.

    Example:
        ::

            from mhe_core.integrations.lightning import EnergyCallback

            trainer = Trainer(callbacks=[EnergyCallback(hidden_weight=0.1, part="model")])
    """

    def __init__(self, *args: Any, part: str = "", log: str = "penalty", **kwargs: Any) -> None:
        if log not in ("nothing", "penalty", "layers"):
            raise UserError(f"expected log as 'nothing', 'penalty' or 'layers', got {log!r}")
        self.args, self.kwargs, self.part = args, kwargs, part
        self.logged = log  # Lightning gives callbacks a method log
        self.regularizer: NetworkRegularizer | None = None
        self._regularized: LightningModule | None = None
        self._loaded: dict[str, Any] | None = None
        self._updated_at = -1  # the optimizer step whose penalty was computed last
        self._is_first = False  # of the batches that one step accumulates
        self._training_step: Callable[..., Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the regularizer, and wrap the module's ``training_step``."""
        if not pl_module.automatic_optimization:
            raise UserError(
                "expected a module with automatic optimization; where you call backward yourself, "
                "add a NetworkRegularizer's value to the loss"
            )
        if self.regularizer is None or self._regularized is not pl_module:
            self._regularized, self._updated_at = pl_module, -1
            part = pl_module.get_submodule(self.part)
            self.regularizer = NetworkRegularizer(part, *self.args, **self.kwargs)
        if self._loaded is not None:
            self._take_up(self._loaded)
        regularizer, self._training_step = self.regularizer, pl_module.training_step

        @functools.wraps(self._training_step)  # Lightning asks for the signature
        def training_step(*args: Any, **kwargs: Any) -> Any:
            assert self._training_step is not None
            output = self._training_step(*args, **kwargs)
            if output is None or not self._is_first:
                return output
            penalty = regularizer()
            if self.logged != "nothing":
                pl_module.log("penalty", penalty.detach())
            if self.logged == "layers":
                pl_module.log_dict(regularizer.weighted_terms("penalty/"))
            penalty = penalty * trainer.accumulate_grad_batches
            if isinstance(output, dict):
                return {**output, "loss": output["loss"] + penalty}
            return output + penalty

        pl_module.training_step = training_step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Update the regularizer, if this batch is the first of an optimizer step."""
        assert self.regularizer is not None
        self._is_first = trainer.global_step != self._updated_at
        if self._is_first:
            self._updated_at = trainer.global_step
            self.regularizer.update(trainer.optimizers[0].param_groups[0]["lr"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its ``training_step`` back."""
        if self._training_step is not None:
            vars(pl_module).pop("training_step", None)
            self._training_step = None

    def state_dict(self) -> dict[str, Any]:
        """The regularizer's state."""
        state = {} if self.regularizer is None else self.regularizer.state_dict()
        return {"regularizer": state, "updated_at": self._updated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state up, now or as soon as there is a regularizer."""
        self._loaded = state_dict
        if self.regularizer is not None:
            self._take_up(state_dict)

    def _take_up(self, state: dict[str, Any]) -> None:
        assert self.regularizer is not None
        self.regularizer.load_state_dict(state["regularizer"])
        self._updated_at, self._loaded = state["updated_at"], None
