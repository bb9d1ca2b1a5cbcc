"""``sphereface-plus align``: a folder of photographs to a folder of aligned faces.

Every image's outcome is a line in OUTPUT/align.jsonl as soon as it is known, so that an interrupted
job goes on where it stopped; OUTPUT/align.json counts and names them at the end.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import replacing, write_atomically
from mhe_core.training.images import NOT_IMAGES, DataError, find_images, printable, read_image
from mhe_core.training.processes import resolve_device
from PIL import Image, ImageDraw, ImageOps
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sphereface_plus.alignment_check import CheckConfig, check_alignment, check_lines
from sphereface_plus.faces import (
    SIZES,
    FaceDetector,
    centre_crop,
    select_face,
    warp_face,
)

__all__ = ["AlignConfig", "align", "main"]

KEPT = {".jpg", ".jpeg", ".png"}  # the others are written as PNG
JOURNAL, REPORT = "align.jsonl", "align.json"
ALIGNED, NO_FACE, UNREADABLE = "aligned", "without a face", "unreadable"

Record = dict[str, Any]


class DetectionError(OSError):
    """An error of the machine while it looked for a face; nothing is said of the photograph."""


@dataclass(kw_only=True)
class AlignConfig:
    """Find the face in every photograph of a folder and align it; layout and names are kept.

    With --check DIR in place of the other flags: is a set aligned already, and how well?

    Attributes:
        images: the folder of photographs, such as LFW's Name/Name_0001.jpg.
        output: the folder for the aligned faces; given again, the job continues.
        size: height x width of the aligned faces.
        select: of several faces take the one nearest to the centre weighted by size, the largest,
            or the most probable.
        fallback: for a photograph without a face write the crop of its middle, or nothing.
        preview: PNG file for a contact sheet of photographs beside their aligned faces.
        workers: processes; 0: in this one.
        device: where the detector runs, auto, cpu, cuda, ….
    """

    images: Path
    output: Path
    size: Literal["112x96", "112x112"] = "112x96"
    select: Literal["centre", "largest", "probability"] = "centre"
    fallback: Literal["centre-crop", "skip"] = "centre-crop"
    preview: Path | None = None
    workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"expected --workers at least 0, got {self.workers}")


def align(config: AlignConfig) -> dict[str, Any]:
    """Align a folder of photographs.

    One photograph that is damaged or shows no face never stops the others. Faces are written under
    a temporary name and renamed; photographs of an earlier call that have their outcome in the
    journal are not searched again, unreadable ones are.

    Returns:
        The report that is written to OUTPUT/align.json: counts, and the names of the photographs
        without a face, of unreadable files with the reason, and of files that are no images.

    Raises:
        FileNotFoundError: if the folder of photographs is missing or has no image.
        ValueError: if the output folder lies in it, was made with other settings, or two files
            would be written to the same place.
    """
    device = str(resolve_device(config.device))
    names, left_out = find_photographs(config)
    settings = {key: getattr(config, key) for key in ("size", "select", "fallback")}
    journal = config.output / JOURNAL
    records = read_journal(journal, settings)
    todo = [name for name in names if not finished(records.get(name), config.output)]

    loader = DataLoader(
        Photographs(todo, config, device),
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=config.workers,
        # CUDA does not work in forked processes.
        multiprocessing_context="spawn" if config.workers and device != "cpu" else None,
    )
    bar = tqdm(loader, total=len(names), initial=len(names) - len(todo), unit="image")
    with journal.open("a") as file:
        for record in bar:
            records[record["image"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()

    found = [records[name] for name in names]
    report = summarise(found, left_out, settings)
    write_atomically(config.output / REPORT, json.dumps(report, indent=2) + "\n")
    if config.preview is not None:
        contact_sheet(found, config).save(config.preview)
    return report


def find_photographs(config: AlignConfig) -> tuple[list[str], dict[str, list[str]]]:
    """Paths below the folder, of images, and of what is left out, by reason."""
    root = config.images
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of photographs at {root}, found none")
    if config.output.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"expected --output outside of {root}, got {config.output}, "
            "where its faces would be taken for photographs"
        )
    found = find_images(root)
    names = sorted(str(path.relative_to(root)) for path in found.paths)
    if not names:
        remarks = "; ".join(found.remarks()) or "nothing is there"
        raise FileNotFoundError(f"expected images in {root}, found none ({remarks})")
    places = Counter(output_name(name) for name in names)
    if clashes := [name for name in names if places[output_name(name)] > 1]:
        raise UserError(f"expected different names for {', '.join(clashes)}: rename all but one")
    left_out = {
        why: [str(path.relative_to(root)) for path in paths]
        for why, paths in found.left_out.items()
    }
    return names, left_out


def output_name(name: str) -> str:
    """Where a photograph's face is written: its own name, or .png for a less common format."""
    path = Path(name)
    return name if path.suffix.lower() in KEPT else str(path.with_suffix(".png"))


def read_journal(journal: Path, settings: dict[str, str]) -> dict[str, Record]:
    """The outcomes of an earlier, perhaps interrupted call, by name; a new journal if none."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    if not journal.exists():
        write_atomically(journal, json.dumps(settings) + "\n")
        return {}
    records = {}
    whole = []
    for line in journal.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, of a call that was killed while it wrote
        whole.append(line + "\n")
        if "image" in record:
            records[record["image"]] = record
        elif record != settings:
            changes = [f"{k} {record.get(k)!r}, not {v!r}" for k, v in settings.items()]
            raise UserError(
                f"{journal.parent} was made with other settings ({', '.join(changes)}): "
                "give another --output"
            )
    write_atomically(journal, "".join(whole))
    return records


def finished(record: Record | None, output: Path) -> bool:
    """Whether an earlier call has dealt with a photograph."""
    if record is None or record["status"] == UNREADABLE:
        return False
    return record["output"] is None or (output / record["output"]).exists()


class Photographs(Dataset):
    """Item i aligns the i-th photograph, writes its face, and is the outcome's record."""

    def __init__(self, names: list[str], config: AlignConfig, device: str) -> None:
        self.names = names
        self.config = config
        self.device = device
        self.detector: FaceDetector | None = None  # one in each process

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        name = self.names[index]
        config = self.config
        try:
            image = read_image(config.images / name)
        except DataError as error:
            return {"image": name, "status": UNREADABLE, "reason": str(error), "output": None}
        if self.detector is None:
            self.detector = FaceDetector(self.device)
        try:
            faces = self.detector(image)
        except Exception as error:
            raise DetectionError(
                f"the detector failed on {printable(name)} ({type(error).__name__}: {error}); "
                "what is done is kept: continue with the same command"
            ) from error
        record: Record = {"image": name, "status": ALIGNED, "faces": len(faces), "output": None}
        if faces:
            chosen = select_face(faces, image.size, config.select)
            record["landmarks"] = chosen.landmarks.round(2).tolist()
            image = warp_face(image, chosen.landmarks, config.size)
        else:
            record["status"] = NO_FACE
            if config.fallback == "skip":
                return record
            image = centre_crop(image, config.size)
        record["output"] = output_name(name)
        write_image(image, config.output / record["output"])
        return record


def as_it_is(record: Any) -> Any:
    """For DataLoader, which would make tensors of the numbers."""
    return record


def write_image(image: Image.Image, file: Path) -> None:
    """Write under a temporary name and rename."""
    with replacing(file, "wb") as stream:
        image.save(stream, "PNG" if file.suffix.lower() == ".png" else "JPEG", quality=95)


def summarise(
    records: list[Record], left_out: dict[str, list[str]], settings: dict[str, str]
) -> Record:
    """The report."""
    without = [r["image"] for r in records if r["status"] == NO_FACE]
    unreadable = {r["image"]: r["reason"] for r in records if r["status"] == UNREADABLE}
    return {
        **settings,
        "images": len(records),
        "aligned": len(records) - len(without) - len(unreadable),
        "without_a_face": without,
        "unreadable": unreadable,
        "not_images": left_out.get(NOT_IMAGES, []),
        "left_out": {why: names for why, names in left_out.items() if why != NOT_IMAGES},
    }


def contact_sheet(records: list[Record], config: AlignConfig, pairs: int = 40) -> Image.Image:
    """Photographs, with the landmarks found, each beside its face; evenly over all of them."""
    written = [record for record in records if record["output"]]
    (height, width), _ = SIZES[config.size]
    chosen = written[:: max(1, -(-len(written) // pairs))]
    columns = 5
    sheet = Image.new("RGB", (columns * (2 * width + 8), -(-len(chosen) // columns) * (height + 8)))
    for place, record in enumerate(chosen):
        photograph = read_image(config.images / record["image"])
        small = ImageOps.contain(photograph, (width, height))
        draw = ImageDraw.Draw(small)
        for x, y in np.array(record.get("landmarks", [])) * (small.width / photograph.width):
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(255, 60, 60))
        row, column = divmod(place, columns)
        left, top = column * (2 * width + 8), row * (height + 8)
        sheet.paste(small, (left + (width - small.width) // 2, top + (height - small.height) // 2))
        sheet.paste(read_image(config.output / record["output"]), (left + width, top))
    return sheet


def report_lines(report: Record, output: Path) -> Iterator[str]:
    """The report for a reader: names of what went wrong, and one line of counts."""
    for name in report["without_a_face"]:
        yield f"without a face: {name}"
    for name, reason in report["unreadable"].items():
        yield f"unreadable: {name} ({reason})"
    crop = " (centre crop written)" if report["fallback"] == "centre-crop" else ""
    left_out = {NOT_IMAGES: report["not_images"], **report["left_out"]}
    others = ", ".join(f"{len(names)} {why}" for why, names in left_out.items())
    yield (
        f"{report['images']} images: {report['aligned']} aligned, "
        f"{len(report['without_a_face'])} without a face{crop}, "
        f"{len(report['unreadable'])} unreadable; left out: {others}; "
        f"report in {output / REPORT}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument.split("=")[0] == "--check" for argument in arguments):
        for line in check_lines(
            check_alignment(parse(CheckConfig, arguments, "sphereface-plus align --check"))
        ):
            print(line)
        return
    config = parse(AlignConfig, arguments, "sphereface-plus align")
    for line in report_lines(align(config), config.output):
        print(printable(line))


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus align", main, sys.argv[1:]))
