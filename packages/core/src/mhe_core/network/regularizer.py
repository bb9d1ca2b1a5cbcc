"""Regularizing a whole network: the weighted sum of its layers' energies."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mhe_core.autocast import without_autocast
from mhe_core.eager import eagerly
from mhe_core.energy.rows import waits_are_dear, working_copy
from mhe_core.network._anchors import Anchors
from mhe_core.network._batching import Layer, arguments, blamed, layer_terms
from mhe_core.network._clipping import bounded_value
from mhe_core.network._coverage import ParameterRole, covered_share, parameter_roles
from mhe_core.network._output import doubt_about_output
from mhe_core.network._plan import plan_layers
from mhe_core.network._processes import (
    averages_gradients,
    check_rows,
    check_same_weights,
    group_of,
    process,
    shared_terms,
    sum_over_processes,
)
from mhe_core.network._weight import Weight
from mhe_core.network._wrappers import unwrapped
from mhe_core.network.neurons import Split, named_weights, weight_at
from mhe_core.network.patterns import Patterns
from mhe_core.network.rules import (
    Kind,
    Rule,
    Rules,
    Schedule,
    check_number,
    weight_now,
)
from mhe_core.regularizers.base import Regularizer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["NetworkRegularizer"]


class NetworkRegularizer(nn.Module):
    r"""Weighted sum of the energies of a network's layers, to be added to its loss.

    The default weights and energies are those of the published programs of Liu et al. (NeurIPS
    2018): half-space energy in hidden layers, full-space energy, ten times, in the output layer.

    Covered are Linear, Conv1d/2d/3d and ConvTranspose1d/2d/3d layers; the energy of a grouped
    convolution is the mean over its groups. Left out are layers with fewer than two neurons (in a
    group), all but one of the layers that share a weight, and frozen layers for as long as they
    are (``requires_grad`` is False): their energy is a constant. Weights are read anew at each
    call, as the network uses them, see :func:`neuron_matrix`; with the neurons' lengths, such as
    those of a weight or spectral norm, where the regularizer depends on these.

    Left out, too, unless ``include`` or ``output_layer`` names them, are layers whose neurons
    cannot be spread: those of one dimension d, and those with s ≥ d − 1, where the energy of random
    directions is infinite, and more neurons than axes (half-space: d) or a simplex (d + 1) hold.

    *What a step may do.* The gradient of an energy goes as one over a neuron's length, so that rows
    which start at zero would be thrown away as soon as they are tiny. Therefore the gradient
    :math:`g_i` that the value has with respect to a neuron :math:`w_i` is clipped as in Brock et
    al. (2021, arXiv 2102.06171, eq. 3), whatever the value is multiplied by later:

    .. math:: g_i \leftarrow g_i \min(1, \tau \lVert w_i \rVert / \lVert g_i \rVert),

    with τ = ``clip_factor``: of itself, a step of SGD moves no neuron by more than lr · τ of its
    length. Neurons that are not clipped have the exact gradient, to the bit. A value P beyond
    ±1000 becomes ±1000 · (1 + ln(abs(P) / 1000)), so that the loss keeps its digits beside it;
    :meth:`terms` is exact. Second derivatives take the bound as a constant.

    Where ``torch.distributed`` is initialized, each process computes a share of the energies. All
    then have to call :meth:`forward` and :meth:`update`, with the same weights (the first call
    compares them) and in the same order: not so in torch's ``Join``, which goes on without the
    processes that have run out of data and needs ``share_work=False``. With DistributedDataParallel
    and ``find_unused_parameters=True``, let the forward of the module that is wrapped return the
    penalty: layers that only the penalty uses count as unused otherwise, and DDP's backward fails.
    The value is the whole; a process's gradient is its own share's times the number of
    processes, so that the *average* over processes, which DistributedDataParallel or one's own
    ``all_reduce`` takes, is the gradient of the whole.

    Weights that are sharded over processes, by FSDP2 (``fully_shard``) or tensor parallelism
    (``parallelize_module``), are gathered, and their gradients sharded again: all processes have to
    call whatever reads weights (:meth:`forward`, :meth:`update`, :meth:`terms`), as one that calls
    it alone waits for the others for ever. Under tensor parallelism each computes the whole.

    The parameters stay the model's: ``parameters()`` and ``state_dict()`` have the regularizers'
    own state only, and the number of updates if a weight follows a schedule.

    *Layer by layer.* ``rules`` are settings by pattern; the first one that fits a layer changes
    what its role says::

        rules={
            "*.attn.*": {"weight": 0.1, "regularizer": "mhe", "s": 1},
            re.compile(r"blocks\.[01]\..*"): {"weight": lambda step: min(1.0, step / 1000)},
            nn.Conv2d: {"regularizer": None},
        }

    ``weight`` stands in place of the role's, ``regularizer=None`` leaves the layer out, and all
    else are hyperparameters: of the regularizer that is named beside them, if one is, otherwise in
    addition to the role's. A pattern is a name, a pattern of the shell, a compiled regular
    expression, which has to match the whole name, or a class of modules; so it is in ``include``,
    ``exclude``, ``output_layer`` and ``split``.

    Args:
        model: the network, possibly wrapped in DistributedDataParallel or ``torch.compile``;
            layers have the names that they have inside the wrapper.
        hidden: the hidden layers' regularizer: a registered name, a class or factory that is called
            as ``factory(num_neurons, dim, **options)``, or a module, which all layers then share;
            None leaves these layers out.
        output: the output layer's regularizer, likewise.
        hidden_weight: factor of each hidden layer's energy, or a function of the step that returns
            it: 0 at the first step, then the number of calls of :meth:`update` before the last.
        output_weight: factor of the output layer's energy, or a function of the step.
        hidden_options: hyperparameters of the hidden layers' regularizer, such as ``{"s": 1}``.
        output_options: hyperparameters of the output layer's regularizer.
        output_layer: names or patterns of the output layers: any modules whose ``weight`` has
            neurons as rows. By default what the model's ``get_classifier()`` returns if it has that
            method (timm; each of several heads is an output layer), else the last Linear layer or
            1×1 convolution, with a warning where others may be meant.
        exclude: layers to leave out, by patterns such as ``"stem.*"``.
        include: modules to cover beside the above: Embedding layers, and any other module whose
            ``weight`` has neurons as rows.
        rules: settings by pattern, see above.
        split: by pattern, into how many blocks of neurons, or into blocks of which sizes, fused
            weights are split: ``{"*.qkv": 3}`` gives layers ``….qkv[0]`` to ``….qkv[2]``.
        reduction: ``"sum"`` over layers, or ``"mean"``: the sum over the number of layers, so that
            weights need not depend on the depth.
        share_work: whether the processes of a distributed run share the work; False where each
            has a model of its own.
        anchors: M, for layers with very many neurons, such as vocabularies: where a layer has more
            than M, and its regularizer takes anchors (see :class:`~mhe_core.Regularizer`), each
            step counts the pairs of M of them with all others. They are drawn anew at each
            :meth:`update`, as a function of ``anchors_seed``, the step and the layer's name; the
            expected value is the energy of all. None counts all pairs.
        anchors_seed: what the anchors are drawn from, an integer ≥ 0.
        group: the processes that train this model together, where they are not all that there are;
            by default those of the DistributedDataParallel that the model is wrapped in, else all.
        clip_factor: τ above; None for the exact value and gradient, whatever they are.

    Attributes:
        layers: names of the layers that are covered, in the network's order.
        output_layers: names of those among them that count as output layers.
        step: the number of the present step, 0 until the second call of :meth:`update`.

    Raises:
        TypeError: if the model is no module, a weight no number, or a pattern none.
        ValueError: if the output layer is wanted and not found, if a pattern fits nothing (the
            message lists the names), or if a weight or an option is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mhe_core import NetworkRegularizer
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> regularizer = NetworkRegularizer(model, hidden_options={"s": 1})
        >>> loss = model(torch.randn(2, 8)).square().mean() + regularizer()
        >>> loss.backward()
        >>> list(regularizer.terms())
        ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: Kind = "mhe-core:half_mhe",
        output: Kind = "mhe-core:mhe",
        *,
        hidden_weight: Schedule = 1.0,
        output_weight: Schedule = 10.0,
        hidden_options: Mapping[str, Any] | None = None,
        output_options: Mapping[str, Any] | None = None,
        output_layer: Patterns | None = None,
        exclude: Patterns = (),
        include: Patterns = (),
        rules: Rules | None = None,
        split: Split | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        share_work: bool = True,
        anchors: int | None = None,
        anchors_seed: int = 0,
        clip_factor: float | None = 1.0,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model as a torch.nn.Module, got {type(model).__name__}")
        check_rows(model)
        for name, factor in (("hidden_weight", hidden_weight), ("output_weight", output_weight)):
            weight_now(factor, 0, name)
        if reduction not in ("sum", "mean"):
            raise ValueError(f"expected reduction as 'sum' or 'mean', got {reduction!r}")
        if clip_factor is not None and not 0 < clip_factor < math.inf:
            raise ValueError(
                f"expected clip_factor as a finite number above 0, or None, got {clip_factor!r}"
            )
        self._anchors = Anchors(anchors, anchors_seed)
        self.hidden_weight = hidden_weight
        self.output_weight = output_weight
        self.reduction = reduction
        self.share_work = share_work
        self.clip_factor = clip_factor
        self.group = group if group is not None else group_of(model)

        # In a tuple, as the model as an attribute would be registered as a submodule.
        self._held: tuple[nn.Module, ...] = (unwrapped(model),)
        self._is_same = False  # the model on all processes, as far as it was looked at
        self._told = False  # that weights are not finite
        self._split = split
        plan = plan_layers(
            model,
            hidden=Rule(hidden, hidden_options or {}, origin="hidden=None"),
            output=Rule(output, output_options or {}, origin="output=None"),
            output_layer=output_layer,
            exclude=exclude,
            include=include,
            rules=rules,
            split=split,
        )
        self._outputs, self._reasons = plan.output_layers, plan.left_out
        self._names = list(plan.regularizers)
        self._own_weights = plan.weights
        self.regularizers = nn.ModuleDict()
        for name, regularizer in plan.regularizers.items():
            self.regularizers[key(name)] = regularizer
            self._anchors.add(name, regularizer, plan.num_neurons[name])
        self._last: tuple[list[str], Tensor] | None = None
        self._scheduled: dict[str, Tensor] = {}
        if self._anchors or any(callable(self._weight_of(name)) for name in self._names):
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
            self.register_load_state_dict_post_hook(take_up_updates)  # type: ignore[no-untyped-call]
        self._updates = 0
        self._follow_schedules()
        self._anchors.draw(self.step)
        self._wanted = hidden is not None, output is not None
        self._warn(output_layer is None and output is not None)

    def attach(self, model: nn.Module) -> None:
        """Take a model again, with the layers that the regularizer was made for.

        A pickled regularizer comes back without its model and its group. A deep copy belongs to the
        copy of the model if both are copied together, the model first, else to the same model.
        """
        self._held = (unwrapped(model),)
        self._is_same = False
        known = named_weights(model, split=self._split)
        missing = [name for name in self._names if name not in known]
        if missing:
            raise ValueError(f"expected a model with the layers {self._names}, {missing} are not")

    @property
    def _model(self) -> nn.Module:
        if not self._held:
            raise RuntimeError("expected attach(model) first: pickling leaves the model out")
        return self._held[0]

    def _weight(self, name: str) -> Weight:
        """A covered layer's weight, as far as its regularizer depends on it."""
        weight = weight_at(self._model, name, split=self._split)
        regularizer = self.regularizers[key(name)]
        return weight.whole() if getattr(regularizer, "depends_on_lengths", True) else weight

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": (), "group": None, "_last": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> NetworkRegularizer:
        held = tuple(memo.get(id(model), model) for model in self._held)
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        twin.__dict__.update(_held=held, group=self.group)
        return twin

    def _warn(self, guessed: bool) -> None:
        """Say what a user may not expect."""
        model = self._model
        found = [doubt_about_output(model, self._outputs, self._split)] if guessed else []
        found += [
            f"the output layer {name!r} is left out: {self._reasons[name]}; output_layer={name!r} "
            "keeps it"
            for name in self._outputs
            if guessed and "dimension" in self._reasons.get(name, "")
        ]
        if all(self._wanted):
            roles = self.describe()
            share = covered_share(model, roles)
            if not self._names or not any(role.role != "left out" for role in roles):
                found.append("no trained layer is covered: the value is 0. describe() says why")
            elif share < 0.5 and "excluded" not in self._reasons.values():
                found.append(
                    f"{share:.0%} of the network's trained weights are covered. describe() lists "
                    "what is left out, and why; include= takes names and patterns"
                )
        for message in filter(None, found):
            warnings.warn(f"NetworkRegularizer: {message}", stacklevel=3)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that are covered."""
        return list(self._names)

    @property
    def output_layers(self) -> list[str]:
        """Names of those among :attr:`layers` that count as output layers."""
        return [name for name in self._names if name in self._outputs]

    def describe(self) -> list[ParameterRole]:
        r"""What happens to each parameter of two or more dimensions, and why.

        Example:
            >>> from torch import nn
            >>> from mhe_core import NetworkRegularizer
            >>> model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 4))
            >>> print(*NetworkRegularizer(model).describe(), sep="\n")
            0.weight [9, 8]: left out, '0': Embedding, which include= covers
            1.weight [16, 8]: hidden, layer '1'
            2.weight [4, 16]: output, layer '2'
        """
        model = self._model
        weights = named_weights(model, split=self._split)
        weights |= {name: self._weight(name) for name in self._names}
        covered = {n: "output" if n in self._outputs else "hidden" for n in self._names}
        reasons = {
            name: weight.problem or f"{type(weight.module).__name__}, which include= covers"
            for name, weight in weights.items()
        }
        return parameter_roles(model, weights, covered, reasons | self._reasons)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}(  # clip_factor={self.clip_factor}"]
        for name in self._names:
            role = "output" if name in self._outputs else "hidden"
            factor = float(self._factor(name))
            lines.append(f"  {name}: {role}, {factor:g} × {self.regularizers[key(name)]}")
        left_out = len(self._reasons)
        return "\n".join([*lines, f")  # {left_out} layers left out: describe() says why"])

    def forward(self) -> Tensor:
        """The weighted sum of the layers' energies, or that over their number.

        A scalar, in at least float32; 0 where no layer is left. With several processes that share
        the work, all have to call it; its value is the same on all.
        """
        if torch.compiler.is_compiling() and not self._compiles:
            return eagerly(NetworkRegularizer.forward, self)
        layers = list(self._trained_layers())
        if not layers:
            self._last = None
            return torch.zeros(())
        number = len(layers) if self.reduction == "mean" else 1
        for layer in layers:
            layer.factor = self._factor(layer.name) / number
        clip_factor = self.clip_factor if torch.is_grad_enabled() else None
        rank, processes = process(self.group) if self.share_work else (0, 1)
        alone = processes == 1 or not averages_gradients(self._model)
        if not (alone or self._is_same or torch.compiler.is_compiling()):
            check_same_weights(layers, self.group)
            self._is_same = True
        found = (
            layer_terms(layers, clip_factor)
            if alone
            else shared_terms(layers, rank, processes, self.group, clip_factor)
        )
        device = layers[0].neurons.device
        terms = torch.stack([term.to(device) for term in found.values()])
        terms = terms if alone else sum_over_processes(terms, self.group)
        self._last = [layer.name for layer in layers], terms.detach()
        total = terms.sum()
        if not waits_are_dear(total.device):
            self._warn_if_not_finite(layers, total)
        return total if self.clip_factor is None else bounded_value(total)

    @property
    def _compiles(self) -> bool:
        """Whether the compiler can look into all regularizers; into a part would break it often."""
        return all(getattr(r, "compiles", True) for r in self.regularizers.values())

    def terms(self) -> dict[str, Tensor]:
        """Each layer's unweighted energy, a differentiable scalar, by the layer's name.

        Computed by this process alone, whatever others do, for reports; but where weights are
        sharded, all processes have to call it, or it waits for ever. It warns of weights that
        are not finite on all devices, :meth:`forward` on the CPU, where to look costs nothing.
        """
        layers = list(self._trained_layers())
        energies = layer_terms(layers)
        self._warn_if_not_finite(layers, *energies.values())
        return energies

    def weighted_terms(self, prefix: str = "") -> dict[str, Tensor]:
        """The terms that the last :meth:`forward` added up, by the layer's name, for loggers.

        Nothing is computed, and no process waits for another: they are that call's own scalars,
        detached, on its device, the same on all processes. Before the first call there are none.

        Args:
            prefix: put before each name, such as ``"penalty/"``.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from mhe_core import NetworkRegularizer
            >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
            >>> regularizer = NetworkRegularizer(model, reduction="mean")
            >>> value = regularizer()
            >>> terms = regularizer.weighted_terms("penalty/")
            >>> list(terms), bool(sum(terms.values()).isclose(value))
            (['penalty/0', 'penalty/2'], True)
        """
        if self._last is None:
            return {}
        names, terms = self._last
        return {prefix + name: term for name, term in zip(names, terms.unbind(), strict=True)}

    def _warn_if_not_finite(self, layers: list[Layer], *values: Tensor) -> None:
        """Name, once, the layers whose weights are not finite, if a value is not."""
        if self._told or torch.compiler.is_compiling():
            return
        try:
            if all(bool(value.isfinite()) for value in values):
                return
        except RuntimeError:  # fake tensors, those of the meta device and vmap's: no values
            return
        names = [layer.name for layer in layers if not bool(layer.neurons.isfinite().all())]
        self._told = bool(names)
        if names:
            warnings.warn(
                f"NetworkRegularizer: the weights of {', '.join(map(repr, names))} are not finite, "
                "and so are the energies",
                stacklevel=3,
            )

    def update(self, lr: float) -> None:
        """Advance the regularizers' state; to be called once per training step, before forward.

        Args:
            lr: the network's current learning rate.

        Raises:
            ValueError: if ``lr`` is not a finite number ≥ 0.
        """
        if torch.compiler.is_compiling():  # again for each number that changes here, else
            eagerly(NetworkRegularizer.update, self, lr)
            return
        check_number("lr", lr)
        self._updates += 1
        if (updates := self._buffers.get("updates")) is not None:
            updates.fill_(self._updates)
        self._follow_schedules()
        self._anchors.draw(self.step)
        for layer in self._trained_layers():
            update = getattr(layer.regularizer, "update", None)
            if update is None or getattr(update, "__func__", None) is Regularizer.update:
                continue  # it has nothing to advance
            neurons = layer.neurons.detach()
            agree = getattr(layer.regularizer, "agree", None)
            if agree is not None:
                agree(self.group, alone=not self.share_work and self.group is None)
            with without_autocast(neurons.device), blamed(layer):
                for part in arguments(layer, working_copy(neurons)):
                    update(part, lr)

    @property
    def step(self) -> int:
        """The number of the present step, from 0."""
        return max(self._updates - 1, 0)

    def _weight_of(self, name: str) -> Schedule:
        """The factor of a layer's energy, or the schedule that it follows."""
        own = self._own_weights[name]
        of_role = self.output_weight if name in self._outputs else self.hidden_weight
        return of_role if own is None else own

    def _factor(self, name: str) -> float | Tensor:
        """The factor of a layer's energy at the present step."""
        weight = self._weight_of(name)
        return self._scheduled[name] if callable(weight) else weight

    def _follow_schedules(self) -> None:
        """Ask each schedule for its weight of this step.

        They are tensors, as a compiled forward would be compiled again for each new number.
        """
        for name in self._names:
            if callable(weight := self._weight_of(name)):
                value = weight_now(weight, self.step, f"the weight of {name!r}")
                held = self._scheduled.setdefault(name, torch.zeros((), dtype=torch.float64))
                held.fill_(value)

    def _trained_layers(self) -> Iterator[Layer]:
        """The layers that are not frozen, as they are now."""
        for name in self._names:
            weight = self._weight(name)
            if weight.trained:
                regularizer = self.regularizers[key(name)]
                yield Layer(name, regularizer, weight.neurons(), self._anchors.of(name))


def take_up_updates(regularizer: NetworkRegularizer, _: Any) -> None:
    """Go on at the step that a state dict was saved at."""
    regularizer._updates = int(regularizer.get_buffer("updates"))
    regularizer._follow_schedules()
    regularizer._anchors.draw(regularizer.step)


def key(name: str) -> str:
    """A layer's name as one in a ModuleDict: without dots, and unlike a dict's methods."""
    return "/" + name.replace(".", "/")
