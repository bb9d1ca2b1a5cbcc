"""``sphereface-plus evaluate``: anybody's embeddings under every protocol, in one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import write_atomically
from mhe_core.training.images import DataError
from numpy.typing import ArrayLike, NDArray

from sphereface_plus.arguments import lists_spelled_out
from sphereface_plus.embed import read_embeddings
from sphereface_plus.ijb_files import (
    read_scores,
    read_subjects,
    read_template_pairs,
    read_templates,
)
from sphereface_plus.onnx_embedder import embed_with_onnx
from sphereface_plus.packs import read_verification_pack
from sphereface_plus.pair_files import read_pairs
from sphereface_plus.templates import (
    RULES,
    Identification,
    identify_closed,
    identify_open,
    image_features,
    pool_templates,
    rows_of,
    tar_at_far,
)
from sphereface_plus.verification import PROTOCOLS, roc, squared_distances, ten_fold

__all__ = ["EvaluateConfig", "evaluate", "main"]


@dataclass(kw_only=True)
class EvaluateConfig:
    """Verify pairs or templates, or identify them, by embeddings: what each protocol would report.

    Attributes:
        embeddings: .npz with embeddings [N, d] (and names [N]), such as embed writes, or .npy.
        names: a text file with a name a line, for embeddings without names.
        onnx: a network in ONNX in place of embeddings, which embeds --images or --pack.
        images: the folder of aligned faces for --onnx.
        pairs: pairs of LFW, CFP, AgeDB, CALFW or CPLFW; of --templates, IJB's
            template_pair_label.txt.
        pack: a verification pack; the embeddings are those of its images, in their order.
        templates: IJB's face_tid_mid.txt: name, template and medium of each image.
        scores: IJB's name_5pts_score.txt, whose last column weights the images.
        probe: of --templates, IJB's list of those to be identified, such as
            ijbc_1N_probe_mixed.csv: template and person.
        gallery: the lists of those they are looked up in, such as ijbc_1N_gallery_G1.csv
            ijbc_1N_gallery_G2.csv.
        output: a JSON file for the figures.
    """

    embeddings: Path | None = None
    names: Path | None = None
    onnx: Path | None = None
    images: Path | None = None
    pairs: Path | None = None
    pack: Path | None = None
    templates: Path | None = None
    scores: Path | None = None
    probe: Path | None = None
    gallery: list[Path] = field(default_factory=list)
    output: Path | None = None

    def __post_init__(self) -> None:
        """Check that the settings fit each other."""
        if (self.embeddings is None) == (self.onnx is None):
            raise UserError("expected either --embeddings or --onnx")
        if self.pairs is not None and self.pack is not None:
            raise UserError("expected either --pairs or --pack, got both")
        if self.pairs is None and self.pack is None and self.probe is None:
            raise UserError("expected --pairs or --pack or, with --templates, --probe")
        if (self.probe is not None) != bool(self.gallery):
            raise UserError("expected --probe and --gallery together, got one of them")
        if self.templates is not None and self.pack is not None:
            raise UserError("expected --templates with --pairs, got --pack")
        if self.onnx is not None and (self.images is None) == (self.pack is None):
            raise UserError("expected --onnx with either --images or --pack")
        for flag, partner in (
            ("names", "embeddings"),
            ("images", "onnx"),
            ("scores", "templates"),
            ("probe", "templates"),
        ):
            if getattr(self, flag) is not None and getattr(self, partner) is None:
                raise UserError(f"--{flag} goes with --{partner}, which is not given")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The figures, by what reports them.

    Raises:
        DataError: if a pair's image has no embedding, or a file is malformed; names it.
    """
    embeddings, names = embeddings_of(config)
    if config.templates is not None:
        found = template_figures(config, embeddings, names)
    else:
        found = pair_figures(config, embeddings, names)
    if config.output is not None:
        write_atomically(config.output, json.dumps(found, indent=2) + "\n")
    return found


def embeddings_of(config: EvaluateConfig) -> tuple[NDArray[np.float64], list[str] | None]:
    """What is to be evaluated."""
    if config.onnx is not None:
        return embed_with_onnx(config.onnx, config.images or config.pack or Path())
    return read_embeddings(config.embeddings or Path(), config.names)


def pair_figures(
    config: EvaluateConfig, embeddings: NDArray[np.float64], names: list[str] | None
) -> dict[str, Any]:
    """Each protocol's figures of pairs."""
    if config.pack is not None:
        images, labels = read_verification_pack(config.pack)
        if len(images) != len(embeddings):
            raise DataError(
                f"expected an embedding for each of the {len(images)} images of {config.pack}, "
                f"got {len(embeddings)}"
            )
        left, right, same = embeddings[0::2], embeddings[1::2], np.array(labels)
        parts = np.array_split(np.arange(len(same)), min(10, len(same)))
        fold = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    else:
        pairs = read_pairs(config.pairs or Path())
        index = by_name(names)
        left, right = (
            embeddings[[row(index, getattr(pair, side)) for pair in pairs]]
            for side in ("first", "second")
        )
        same = np.array([pair.same for pair in pairs])
        fold = np.array([pair.fold for pair in pairs])
    found: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        result = ten_fold(left, right, same, fold, protocol)
        found[protocol] = {
            "accuracy": float(result.accuracy.mean()),
            "accuracy_std": result.std,
            **({"val_at_far": asdict(result.val[1e-3])} if result.val else {}),
        }
    scores = -squared_distances(left, right)
    found["best_threshold"] = {"accuracy": best_accuracy(scores, same)}
    found["curve"] = curve_figures(scores, same)
    return found


def template_figures(
    config: EvaluateConfig, embeddings: NDArray[np.float64], names: list[str] | None
) -> dict[str, Any]:
    """Of IJB's templates, TAR at FAR by each rule, and how many probes are found in a gallery."""
    index = by_name(names)
    images, template, media = read_templates(config.templates or Path())
    weights = None if config.scores is None else read_scores(config.scores, images)
    rows = [row(index, name) for name in images]
    pooled = pool_templates(image_features(embeddings[rows], scores=weights), template, media)
    found: dict[str, Any] = {}
    if config.pairs is not None:
        first, second, same = read_template_pairs(config.pairs)
        scores = (features_of(pooled, first) * features_of(pooled, second)).sum(1)
        found["curve"] = curve_figures(scores, same)
    if config.probe is not None:
        found |= identification_figures(config.probe, config.gallery, pooled)
    return found


def features_of(
    pooled: tuple[NDArray[np.int64], NDArray[np.float64]], templates: ArrayLike
) -> NDArray[np.float64]:
    """The features [N, d] of those templates."""
    numbers, features = pooled
    return features[rows_of(numbers, templates)]


def identification_figures(
    probe: Path, galleries: list[Path], pooled: tuple[NDArray[np.int64], NDArray[np.float64]]
) -> dict[str, Any]:
    """1:N by the published rules that the lists allow.

    In a closed set, all galleries are one, and each probe has its person there. In an open set,
    each gallery is searched for itself, by probes whose person is not there, too.

    Raises:
        DataError: if the lists allow neither, or a gallery has two templates of a person.
    """
    probes = read_subjects(probe)
    queries, persons = features_of(pooled, list(probes)), np.array(list(probes.values()))
    sets = [read_subjects(file) for file in galleries]
    all_of_them = dict(pair for one in sets for pair in one.items())
    similarity = queries @ features_of(pooled, list(all_of_them)).T
    column_of = {template: column for column, template in enumerate(all_of_them)}

    def looked_up(gallery: dict[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        row_of = {person: row for row, person in enumerate(gallery.values())}
        if len(row_of) < len(gallery):
            raise DataError(
                f"expected one template of each person in {' and '.join(map(str, galleries))}, "
                f"got {len(gallery)} of {len(row_of)} persons"
            )
        columns = [column_of[template] for template in gallery]
        return similarity[:, columns], np.array([row_of.get(person, -1) for person in persons])

    joined = looked_up(all_of_them)
    each = [looked_up(one) for one in sets] if len(sets) > 1 else [joined]
    found: dict[str, Any] = {}
    if (joined[1] >= 0).all():
        found["closed_set"] = identified([identify_closed(*joined)])
    if all(0 < (mate >= 0).sum() < len(mate) for _, mate in each):
        found["open_set"] = identified([identify_open(*one) for one in each])
    if not found:
        raise DataError(
            f"expected each person of {probe} in a gallery, or in each gallery some and not all, "
            f"got {', '.join(f'{(mate >= 0).sum()} of {len(mate)}' for _, mate in each)}"
        )
    return found


def identified(galleries: list[Identification]) -> dict[str, Any]:
    """As published: ranks over the mated probes of all galleries, the mean of their TPIRs."""
    mated = [gallery.mated for gallery in galleries]
    return {
        "rank": {
            str(k): float(np.average([gallery.rank[k] for gallery in galleries], weights=mated))
            for k in galleries[0].rank
        },
        "tpir_at_fpir": {
            f"{fpir:g}": float(np.mean([gallery.tpir[fpir] for gallery in galleries]))
            for fpir in galleries[0].tpir
        },
        "mated": sum(mated),
        "galleries": len(galleries),
    }


def curve_figures(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> dict[str, Any]:
    """What a curve over all pairs gives, without folds."""
    curve = roc(scores, same)
    rules = {
        rule: {f"{far:g}": tar for far, tar in tar_at_far(scores, same, rule=rule).items()}
        for rule in RULES
    }
    return {"auc": curve.auc, "eer": curve.eer, "tar_at_far": rules}


def best_accuracy(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """The accuracy at the threshold that is best for these very pairs."""
    order = np.argsort(-scores, kind="stable")
    right = np.concatenate([[0], np.cumsum(np.where(same[order], 1, -1))]) + (~same).sum()
    falls = np.append(np.diff(scores[order]) < 0, True)  # a threshold cannot part equal scores
    return float(right[np.concatenate([[True], falls])].max() / len(same))


def by_name(names: list[str] | None) -> dict[str, int]:
    """Row by name, with and without its suffix."""
    if names is None:
        raise DataError("expected the embeddings' names, in the .npz file or by --names")
    index = {name.rsplit(".", 1)[0]: i for i, name in enumerate(names)}
    index.update({name: i for i, name in enumerate(names)})
    return index


def row(index: dict[str, int], name: str) -> int:
    """The row of an image; a DataError if it has no embedding."""
    for key in (name, name.rsplit(".", 1)[0]):
        if key in index:
            return index[key]
    raise DataError(f"expected an embedding of {name}, found none")


def table(found: dict[str, Any]) -> str:
    """Markdown: what each would report."""
    lines = ["| reported | value, % |", "|---|---|"]
    for protocol in PROTOCOLS:
        if protocol in found:
            figures = found[protocol]
            value = f"{100 * figures['accuracy']:.2f} ± {100 * figures['accuracy_std']:.2f}"
            lines.append(f"| accuracy, protocol {protocol} | {value} |")
            if val := figures.get("val_at_far"):
                shown = f"{100 * val['val']:.2f} ± {100 * val['std']:.2f} (FAR {val['far']:.2g})"
                lines.append(f"| VAL@FAR 0.001, protocol {protocol} | {shown} |")
    if "best_threshold" in found:
        best = f"{100 * found['best_threshold']['accuracy']:.2f}"
        lines.append(
            f"| best threshold on these very pairs: no protocol, always too high | {best} |"
        )
    if curve := found.get("curve"):
        for rule, tars in curve["tar_at_far"].items():
            for far, tar in tars.items():
                lines.append(f"| TAR at FAR {far}, rule {rule} | {100 * tar:.2f} |")
        lines.append(f"| EER | {100 * curve['eer']:.2f} |")
        lines.append(f"| AUC | {100 * curve['auc']:.2f} |")
    for kind in ("closed", "open"):
        if one := found.get(f"{kind}_set"):
            for k, share in one["rank"].items():
                lines.append(f"| rank {k}, {kind} set | {100 * share:.2f} |")
            for fpir, tpir in one["tpir_at_fpir"].items():
                lines.append(f"| TPIR at FPIR {fpir}, {kind} set | {100 * tpir:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    spelled = lists_spelled_out(arguments, "--gallery")
    print(table(evaluate(parse(EvaluateConfig, spelled, "sphereface-plus evaluate"))))


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus evaluate", main, sys.argv[1:]))
