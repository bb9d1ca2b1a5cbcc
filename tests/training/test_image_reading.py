"""The one reader: every mode and orientation becomes the upright RGB that a viewer would show."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from mhe_core.training.images import DataError, decode, image_size, read_image
from PIL import Image

RAMP = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def read(file):
    return np.asarray(read_image(file))


def grey(levels):
    return np.repeat(np.asarray(levels, np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_keeps_its_shades(tmp_path, suffix):
    file = tmp_path / f"deep.{suffix}"
    values = RAMP.astype(np.uint16) * 257
    if suffix == "pgm":  # which Pillow before 11 reads and does not write
        height, width = RAMP.shape
        file.write_bytes(f"P5 {width} {height} 65535\n".encode() + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(file)
    np.testing.assert_array_equal(read(file), grey(RAMP))


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path):
    # A rule that looked at the values would make it as bright as its neighbours in the folder.
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "dark.png")
    np.testing.assert_array_equal(read(tmp_path / "dark.png"), grey(np.rint(RAMP / 257)))


@pytest.mark.parametrize("scale", [1, 255, 65535])
def test_floating_point_grey_of_any_usual_scale_keeps_its_shades(tmp_path, scale):
    values = RAMP.astype(np.float32) / 255 * scale
    Image.fromarray(values).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(read(tmp_path / "float.tif"), grey(RAMP))


def test_floats_just_beyond_black_and_white_are_clipped(tmp_path):
    values = np.array([[-0.02, 0.0, 0.5, 1.0, 1.03]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "sharpened.tif")
    np.testing.assert_array_equal(read(tmp_path / "sharpened.tif"), grey([[0, 0, 128, 255, 255]]))


@pytest.mark.parametrize("values", [[[np.nan, 0.5]], [[-3.0, 0.5]], [[0.0, 1e6]]])
def test_floats_of_no_known_scale_are_refused_by_name(tmp_path, values):
    Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match=r"odd\.tif: expected grey values in \[0, 1\].*got"):
        read_image(tmp_path / "odd.tif")


def test_thirty_two_bit_integers_keep_their_shades(tmp_path):
    Image.fromarray(RAMP.astype(np.int32) * 257).save(tmp_path / "int.tif")
    np.testing.assert_array_equal(read(tmp_path / "int.tif"), grey(RAMP))


def test_sixteen_bit_tiff_whose_zero_is_white_is_not_a_negative(tmp_path):
    file = tmp_path / "scan.tif"
    Image.fromarray((255 - RAMP).astype(np.uint16) * 257).save(file, tiffinfo={262: 0})
    with Image.open(file) as image:
        assert image.tag_v2[262] == 0, "Pillow has not written what the test needs"
    np.testing.assert_array_equal(read(file), grey(RAMP))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation):
    # What a camera stores so that the viewer's turn gives COLOURS back (EXIF 2.3, table 6).
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, 1),
        7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(file, exif=exif)
    np.testing.assert_array_equal(read(file), COLOURS)
    assert image_size(file) == (5, 7)


def test_palettes_keep_their_colours_and_their_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "palette.png", transparency=1)
    expected = [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    np.testing.assert_array_equal(read(tmp_path / "palette.png"), expected)


def test_alpha_is_laid_over_white(tmp_path):
    ink = np.zeros((1, 3, 4), dtype=np.uint8)  # black ink on glass
    ink[0, :, 3] = [255, 0, 51]
    Image.fromarray(ink).save(tmp_path / "ink.png")
    np.testing.assert_array_equal(read(tmp_path / "ink.png"), grey([[0, 255, 204]]))
    Image.fromarray(ink[:, :, 2:]).save(tmp_path / "grey.png")  # mode LA
    np.testing.assert_array_equal(read(tmp_path / "grey.png"), grey([[0, 255, 204]]))


def test_cmyk_becomes_the_colours_it_prints(tmp_path):
    inks = np.zeros((1, 4, 4), dtype=np.uint8)
    inks[0, 1:] = np.diag([255, 255, 255, 255])[[0, 1, 3]]  # paper, cyan, magenta, black
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "print.tif")
    expected = [[[255, 255, 255], [0, 255, 255], [255, 0, 255], [0, 0, 0]]]
    np.testing.assert_array_equal(read(tmp_path / "print.tif"), expected)


def test_one_bit_and_animations(tmp_path):
    Image.fromarray(RAMP > 127).save(tmp_path / "fax.png")
    np.testing.assert_array_equal(read(tmp_path / "fax.png"), grey((RAMP > 127) * 255))
    frames = [Image.new("L", (2, 2), level) for level in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(tmp_path / "moving.gif"), grey([[0, 0], [0, 0]]))


@dataclass(frozen=True)
class Record:
    """What a pack offers: bytes that open like a file, and a name."""

    content: bytes
    name: str = "pack.rec: record 7"

    def open(self, mode):
        assert mode == "rb"
        return io.BytesIO(self.content)

    def __str__(self):
        return self.name


def test_whatever_opens_like_a_file_is_read_and_named():
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, "PNG")
    whole = stream.getvalue()
    np.testing.assert_array_equal(decode(Record(whole), (5, 7)).permute(1, 2, 0), COLOURS)
    with pytest.raises(DataError, match=r"cannot read the image pack\.rec: record 7"):
        read_image(Record(whole[:40]))
