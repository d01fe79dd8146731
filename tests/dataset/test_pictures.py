"""What the pixels of a file mean: the same in every reader of images, and in both decoders of videos."""

import logging
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions, data_options
from dataset.clips.decode import ClipSource, read_image, read_video
from dataset.clips.frame_reader import FrameReader
from dataset.images import files
from dataset.images.files import PictureError, picture
from dataset.single_file import InputFormat
from tests.dataset.test_imagenet import dali_or_skip
from tests.dataset.test_video import write_video
from tests.support.logs import records

SIDE = 32
CPU = torch.device("cpu")


def scene(channels: int = 3) -> np.ndarray:
    """Smooth, and turned pictures of it are other pictures."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] * 4
    return np.stack([x + y // 2, 2 * y, 124 - x, 255 - y][:channels], -1).astype(np.uint8)


GREY = scene()[..., 0]
BEFORE = {  # EXIF orientation -> how a file stores a picture that is scene() when upright
    3: lambda a: a[::-1, ::-1],
    6: lambda a: np.rot90(a),
    8: lambda a: np.rot90(a, -1),
}


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(BEFORE[orientation](scene()))).save(path, exif=exif)


def odd_files(folder: Path) -> dict[str, np.ndarray]:
    """Name -> RGB pixels [SIDE, SIDE, 3] that the file must give."""
    folder.mkdir(parents=True)
    grey = np.repeat(GREY[..., None], 3, -1)
    wanted = {}

    def save(name: str, image: Image.Image, pixels: np.ndarray, **how) -> None:
        image.save(folder / name, **how)
        wanted[name] = pixels

    save("plain.png", Image.fromarray(scene()), scene())
    save("grey.png", Image.fromarray(GREY), grey)
    save("deep.png", Image.fromarray(GREY.astype(np.uint16) * 257), grey)
    save("deep.tif", Image.fromarray(GREY.astype(np.uint16) * 257), grey)
    save("float.tif", Image.fromarray(GREY.astype(np.float32) / 255), grey)
    save("alpha.png", Image.fromarray(np.dstack([scene(), GREY])), scene())
    save("cmyk.tif", Image.fromarray(255 - np.dstack([scene(), np.full_like(GREY, 255)]), "CMYK"), scene())
    palette = Image.fromarray(scene()).quantize(16)
    save("palette.png", palette, np.asarray(palette.convert("RGB")))
    save("hole.png", palette, np.asarray(palette.convert("RGB")), transparency=bytes(range(16)))
    for orientation in BEFORE:
        turned(folder / f"turned{orientation}.png", orientation)
        wanted[f"turned{orientation}.png"] = scene()
    turned(folder / "turned6.tif", 6)
    wanted["turned6.tif"] = scene()
    header = f"P5\n{SIDE} {SIDE}\n65535\n".encode()
    (folder / "deep.pgm").write_bytes(header + (GREY.astype(">u2") * 257).tobytes())
    wanted["deep.pgm"] = grey
    for extension in ("jfif", "jpe", "webp", "avif"):
        save(f"plain.{extension}", Image.fromarray(scene()), scene(), quality=95)
    return wanted


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A tree with the odd files in each class of train/ and val/, as clips in odd/, and what they must give."""
    root = tmp_path_factory.mktemp("odd")
    wanted = odd_files(root / "train" / "a")
    for place in ("train/b", "val/a", "val/b"):
        shutil.copytree(root / "train" / "a", root / place)
    return root, wanted


def close(got: np.ndarray, wanted: np.ndarray, name: str) -> None:
    lossy = name.endswith((".jfif", ".jpe", ".webp", ".avif"))
    difference = np.abs(got.astype(int) - wanted.astype(int))
    assert (difference.mean() < 6) if lossy else (difference.max() <= 1), (name, difference.max())


def test_every_reader_sees_the_same_pixels(odd, monkeypatch, caplog):
    root, wanted = odd
    monkeypatch.setattr(files, "_said", set())
    monkeypatch.setattr(files, "_met", {})
    monkeypatch.setattr(logging.getLogger("retort"), "propagate", True)
    caplog.set_level(logging.INFO, "retort")
    names = sorted(wanted)
    resident = dataset_dict["folder"](DataOptions(root, image_size=SIDE))
    said = {record.getMessage().partition(", such as")[0] for record in records(caplog)}
    assert said == {
        "images with more than 8 bits per channel (mode I;16), scaled to 8",
        "images with more than 8 bits per channel (mode I), scaled to 8",
        "images with more than 8 bits per channel (mode F), scaled to 8",
        "images with transparency, dropped",
        "images with mode CMYK, converted to RGB",
        "images with an EXIF orientation, turned upright",
    }
    # the evaluation of imagenet keeps the centre of an image a little larger: compare it with that of the wanted pixels
    streamed = dataset_dict["imagenet"](DataOptions(root, image_size=SIDE))
    seen = torch.cat([b.inputs["image"] for b in streamed.test_loader(7, device=CPU)])[: len(names)]
    centre = v2.Compose([v2.Resize(SIDE * 256 // 224), v2.CenterCrop(SIDE)])
    for i, name in enumerate(names):
        path = root / "train" / "a" / name
        close(resident.train_images[i].numpy(), wanted[name], name)
        close(read_image(ClipSource(path.parent, name.replace("{", "{{")), 0), wanted[name], name)
        shown = InputFormat("image", (3, SIDE, SIDE)).read(path).permute(1, 2, 0).numpy()  # what predict.py shows
        assert np.array_equal(shown, resident.train_images[i].numpy().astype(np.float32) / 255), name
        opened = picture(path)
        close(np.asarray(opened), wanted[name], name)
        expected = np.asarray(centre(opened)).astype(np.float32) / 255
        assert np.array_equal(seen[i].permute(1, 2, 0).numpy(), expected), name
    assert len(records(caplog)) == len(said), "each kind is logged once"


def test_workers_pass_on_what_is_unusual(odd, monkeypatch, caplog):
    root, _ = odd
    monkeypatch.setattr(files, "_said", set())
    monkeypatch.setattr(files, "_met", {})
    monkeypatch.setattr(logging.getLogger("retort"), "propagate", True)
    caplog.set_level(logging.INFO, "retort")
    data = dataset_dict["imagenet"](DataOptions(root, image_size=SIDE, num_workers=2))
    list(data.test_loader(4, device=CPU))
    assert len(records(caplog)) == 6 and "images with transparency, dropped, such as" in caplog.text


def test_dali_reads_depth_and_orientation_as_evaluation_does(tmp_path):
    """Means and gradients, as its crops are random."""
    dali_or_skip("cpu")
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for part, pixels in (("8.png", GREY), ("16.png", GREY.astype(np.uint16) * 257)):
            Image.fromarray(pixels).save(tmp_path / "train" / name / part)
        turned(tmp_path / "train" / name / "turned.jpg", 6)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    data = dataset_dict["imagenet"](data_options(tmp_path, image_size=SIDE, dali="cpu"))
    means: dict[str, list[float]] = {"8.png": [], "16.png": [], "turned.jpg": []}
    loader = data.train_loader(6, seed=0, device=CPU)
    for epoch in range(1, 7):
        loader.set_epoch(epoch)
        for batch in loader:
            for image, position in zip(batch.inputs["image"], batch.index.tolist(), strict=True):
                name = Path(data.train.paths[position]).name
                means[name].append(float(image.mean()))
                if name == "turned.jpg":  # green grows from top to bottom of the upright picture only
                    down, right = (image[1].diff(dim=d).mean() for d in (0, 1))
                    assert down > right + 0.005
    assert 0 < np.mean(means["8.png"]) < 0.7
    assert abs(np.mean(means["8.png"]) - np.mean(means["16.png"])) < 0.05


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((8, 8), 200, np.float32), "floating-point pixels from 200 to 200, but 0 to 1 is expected"),
        (np.full((8, 8), np.nan, np.float32), "floating-point pixels from nan"),
        (np.full((8, 8), -5, np.int32), "signed integers"),
    ],
)
def test_pixels_without_a_meaning_are_refused(tmp_path, pixels, words):
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(PictureError, match=rf"x\.tif' is corrupt or not an image \({words}"):
        picture(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.png", b""),
        ("x.jpg", b"a text"),
        ("x.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(20)),
        ("x.webp", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20)),
        ("x.gif", b"GIF89a\xff\xff\xff\xff\0\0\0"),
        ("x.avif", b"\0\0\0\x20ftypavif" + bytes(30)),
        ("x.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30)),
    ],
)
def test_files_that_are_no_pictures(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PictureError, match=rf"{re.escape(name)}' is corrupt or not an image"):
        picture(tmp_path / name)


def test_a_picture_that_ends_early(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    for part in (40, len(whole) // 2):
        (tmp_path / "x.png").write_bytes(whole[:part])
        with pytest.raises(PictureError, match=r"x\.png' is corrupt"):
            picture(tmp_path / "x.png")


def test_a_decompression_bomb_is_one_sentence_in_every_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr("dataset.clips.decode.LARGEST_PICTURE", 100)
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(scene()).save(tmp_path / place / "bomb.png")
    options = DataOptions(tmp_path, image_size=SIDE)
    video = write_video(tmp_path / "v.mp4", 3)
    for read in (
        lambda: dataset_dict["folder"](options),
        lambda: list(dataset_dict["imagenet"](options).test_loader(4, device=CPU)),
        lambda: read_image(ClipSource(tmp_path / "train" / "a", "bomb.png"), 0),
        lambda: read_video(video),
        lambda: FrameReader(16).count(ClipSource(video)),
        lambda: FrameReader(16, decoder="opencv").count(ClipSource(video)),
    ):
        with pytest.raises(UserError, match="decompression bomb.*--skip_corrupt"):
            read()
    with pytest.raises(UserError, match="decompression bomb"):
        InputFormat("image", (3, SIDE, SIDE)).read(tmp_path / "val" / "a" / "bomb.png")


def test_folder_leaves_out_what_it_cannot_read(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("retort"), "propagate", True)
    caplog.set_level(logging.INFO, "retort")
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(scene() + i).save(tmp_path / place / f"{i}.png")
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    (tmp_path / "train" / "b" / "list.csv").write_text("x")
    with pytest.raises(UserError, match=r"1\.png' is corrupt.*--skip_corrupt"):
        dataset_dict["folder"](DataOptions(tmp_path))
    data = dataset_dict["folder"](data_options(tmp_path, skip_corrupt=True))
    assert data.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(data.train_images[1].numpy(), scene() + 2)
    assert "left out 1 images: the image" in caplog.text
    assert "left out 1 files in" in caplog.text and "(.csv)" in caplog.text
    caplog.clear()
    dataset_dict["imagenet"](DataOptions(tmp_path))
    assert "left out 1 files in" in caplog.text
    for path in (tmp_path / "val" / "b").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image of the class '.*val/b' can be read"):
        dataset_dict["folder"](data_options(tmp_path, skip_corrupt=True))


def test_phone_videos_are_turned_in_both_decoders(tmp_path):
    plain = write_video(tmp_path / "plain.mp4", 6)
    content = plain.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(upright, content.index(b"tkhd"))
    for name, (a, b, c, d), quarters in (
        ("90", (0, 1, -1, 0), -1),
        ("180", (-1, 0, 0, -1), 2),
        ("270", (0, -1, 1, 0), 1),
    ):
        matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content[:at] + matrix + content[at + len(matrix) :])
        turned_frames = np.rot90(read_video(plain), quarters, axes=(1, 2))
        assert np.array_equal(read_video(path), turned_frames), name
        for decoder, tolerance in (("av", 0), ("opencv", 3)):
            reader, before = FrameReader(48, decoder=decoder), FrameReader(48, decoder=decoder)
            got = reader.read(ClipSource(path), [0, 4]).astype(int)
            wanted = np.rot90(before.read(ClipSource(plain), [0, 4]), quarters, axes=(1, 2)).astype(int)
            assert got.shape == wanted.shape and np.abs(got - wanted).max() <= tolerance, (name, decoder)
