"""From images to embeddings, and from embeddings to verification figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from mhe_core.errors import UserError
from mhe_core.training.augment import normalize
from mhe_core.training.batches import whole_set
from mhe_core.training.checkpoint import load_checkpoint
from mhe_core.training.images import ImageSet
from mhe_core.training.loop import restore_state
from mhe_core.training.run import saved_config
from torch import Tensor, nn

from sphereface_plus.backbones import create_backbone
from sphereface_plus.config import FaceConfig
from sphereface_plus.heads import SphereFaceHead, create_head
from sphereface_plus.pairs import PairSet
from sphereface_plus.sharded import ShardedSphereFaceHead
from sphereface_plus.verification import FoldResult, ten_fold

__all__ = [
    "EMBEDDERS",
    "MIRRORED",
    "FaceModel",
    "embed",
    "embed_both",
    "load_embedder",
    "load_run",
    "verify",
]

# Pretrained embedders, by the names that facenet-pytorch has for their training sets.
EMBEDDERS = {"facenet-vggface2": "vggface2", "facenet-casia": "casia-webface"}
FACENET_SIZE = (160, 160)

# How an image's embedding and its mirror image's become one, by protocol.
MIRRORED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sphereface": lambda plain, mirrored: torch.cat([plain, mirrored], dim=1),
    "insightface": lambda plain, mirrored: plain + mirrored,
    "distance": lambda plain, mirrored: plain + mirrored,
}


class FaceModel(nn.Module):
    """The backbone, from images to embeddings, and the head, from these to the loss.

    Args:
        config: the run's settings.
        num_classes: people to train on.
        size: height and width of the images.
        sharded: share the class vectors out over the processes.
    """

    def __init__(
        self,
        config: FaceConfig,
        num_classes: int,
        size: tuple[int, int],
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(config.model, config.dim, size, config.width)
        options = config.all_head_options()
        self.head: nn.Module
        if config.head is not None:
            self.head = create_head(config.head, config.dim, num_classes, **options)
        elif sharded:
            self.head = ShardedSphereFaceHead(config.dim, num_classes, **options)
        else:
            self.head = SphereFaceHead(config.dim, num_classes, **options)

    @property
    def class_vectors(self) -> nn.Parameter:
        """The head's, [classes, dim]; of a sharded one, this process's."""
        return self.head.get_parameter("weight")


def load_run(run: Path, checkpoint: str = "best") -> tuple[FaceModel, FaceConfig, dict[str, Any]]:
    """A trained model in evaluation mode, its settings and facts: ``classes``, ``image_size``.

    Raises:
        RunError: if ``run`` is not a run directory.
        CheckpointError: if the checkpoint is damaged or does not fit.
    """
    config = saved_config(FaceConfig, run)
    content = load_checkpoint(Path(run) / "checkpoints" / checkpoint)
    facts = content["facts"]
    model = FaceModel(config, len(facts["classes"]), tuple(facts["image_size"]))
    restore_state({"model": model}, content["state"], f"{run}/checkpoints/{checkpoint}")
    return model.eval(), config, facts


def load_embedder(name: str, weights: Path | None = None) -> nn.Module:
    """A pretrained network of normalised 160×160 images, in evaluation mode.

    Args:
        name: ``facenet-vggface2`` or ``facenet-casia``.
        weights: its state dict, as facenet-pytorch publishes it; default: download it, or take
            torch's cached download.

    Raises:
        ValueError: for another name, or weights that do not fit.
        FileNotFoundError: if ``weights`` is not there.
    """
    from facenet_pytorch import InceptionResnetV1

    if name not in EMBEDDERS:
        raise UserError(f"expected an embedder of {tuple(EMBEDDERS)}, got {name!r}")
    if weights is None:
        try:
            return InceptionResnetV1(pretrained=EMBEDDERS[name]).eval()
        except OSError as error:
            raise OSError(
                f"cannot download the weights of {name} ({error}): give their file with --weights"
            ) from error
    if not Path(weights).is_file():
        raise FileNotFoundError(f"expected weights at {weights}, found none")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for what is no file of its own
        raise ValueError(
            f"expected {weights} to be a state dict saved by torch: {error}"
        ) from error
    network = InceptionResnetV1()
    # The published files also hold a classifier, which is not part of the embedding.
    state = {key: value for key, value in state.items() if not key.startswith("logits.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # whose text lists hundreds of names
        raise UserError(f"expected {weights} to fit InceptionResnetV1, it does not") from error
    return network.eval()


def embed(
    backbone: nn.Module,
    images: ImageSet,
    accelerator: Accelerator,
    protocol: str = "sphereface",
    *,
    batch_size: int = 128,
    workers: int = 0,
) -> Tensor:
    """Embeddings of all images, each with its mirror image's as the protocol wants them.

    Returns:
        ``[N, 2 · dim]`` for ``sphereface``, ``[N, dim]`` for the others, float32.
    """
    both = embed_both(backbone, images, accelerator, batch_size=batch_size, workers=workers)
    return MIRRORED[protocol](*both)


@torch.no_grad()
def embed_both(
    backbone: nn.Module,
    images: ImageSet,
    accelerator: Accelerator,
    *,
    batch_size: int = 128,
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Embeddings of all images and of their mirror images, ``[N, dim]`` each, float32.

    The images are shared out over the processes; every process gets all embeddings. The
    backbone's mode stays as it was.
    """
    training = backbone.training
    backbone.eval()
    rank, processes = accelerator.process_index, accelerator.num_processes
    parts = []
    for pixels, _ in whole_set(
        images,
        batch_size,
        workers=workers,
        device=accelerator.device,
        rank=rank,
        num_processes=processes,
    ):
        x = normalize(pixels)
        with accelerator.autocast():
            both = backbone(torch.cat([x, x.flip(-1)])).float()
        parts.append(torch.cat(both.chunk(2), dim=1))
    backbone.train(training)
    mine = torch.cat(parts)
    everyone = mine.new_zeros(len(images), mine.shape[1])
    everyone[rank::processes] = mine
    plain, mirrored = accelerator.reduce(everyone, reduction="sum").chunk(2, dim=1)
    return plain, mirrored


def verify(
    backbone: nn.Module,
    pairs: PairSet,
    accelerator: Accelerator,
    protocol: str = "sphereface",
    *,
    batch_size: int = 128,
    workers: int = 0,
) -> FoldResult:
    """Verification accuracy over the pairs' folds, each image embedded once."""
    embeddings = embed(
        backbone, pairs.images, accelerator, protocol, batch_size=batch_size, workers=workers
    ).cpu()
    return ten_fold(
        embeddings[pairs.left], embeddings[pairs.right], pairs.same, pairs.fold, protocol
    )
