"""A checkpoint as a mapping of names to tensors, each read from the disk when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping

from torch import Tensor

from mhe_core.errors import UserError

__all__ = ["Checkpoint", "WeightsFileError", "without_wrappers"]

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class WeightsFileError(UserError):
    """The file cannot be read as weights; the message says why."""


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name. Nothing is kept: a tensor that is asked for twice is read twice.

    Args:
        readers: by name, what reads the tensor.
        identities: of tensors that are stored once under several names, equal values.
    """

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Tensor]],
        identities: Mapping[str, Hashable] | None = None,
    ) -> None:
        self._readers = dict(readers)
        self._identities = dict(identities or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def identity(self, name: str) -> Hashable:
        """Equal for tensors that are one and the same."""
        return self._identities.get(name, name)

    def reader(self, name: str) -> Callable[[], Tensor]:
        """What reads the tensor."""
        return self._readers[name]

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same tensors under the new names."""
        return Checkpoint(
            {new: self._readers[old] for old, new in names.items()},
            {new: self.identity(old) for old, new in names.items()},
        )


def without_wrappers(names: list[str]) -> dict[str, str]:
    """To each name the one inside DistributedDataParallel, ``torch.compile``, FSDP1 and the like.

    ``module.`` goes where all names start with it; names that would clash stay as they are.
    """
    inner = {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names
    }
    if all(name.startswith("module.") for name in inner.values()):
        inner = {name: new.removeprefix("module.") for name, new in inner.items()}
    return inner if len(set(inner.values())) == len(inner) else {name: name for name in names}
