"""Pictures and clips survive the way in and out, and bad files are refused in words."""

import hashlib
import io
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from vidgen_ray import video_io
from vidgen_ray.errors import ArtifactError, RequestError, VidgenError
from vidgen_ray.image_io import decode_image, read_image
from vidgen_ray.schema import Video
from vidgen_ray.video_io import read_video, write_video

DATA = Path(os.environ.get("VIDGEN_TEST_DATA", "unset"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="VIDGEN_TEST_DATA names no folder with clips/ and images/"
)


def gradient(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    blue = np.full_like(x, 60)
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), blue], -1).astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(file, kind, **options)
    return file.getvalue()


def moving(num_frames: int = 9, height: int = 64, width: int = 96, fps: float = 8) -> Video:
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = [
        np.stack([np.sin(x + index / 4), np.cos(y), np.sin(y - index / 8)], -1)
        for index in range(num_frames)
    ]
    return Video((127 + 100 * np.stack(waves)).astype(np.uint8), fps)


def video_bytes(video: Video, container: str, codec: str, pix_fmt: str = "yuv420p") -> bytes:
    """`video` as PyAV writes it without the package's help."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(video.fps))
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        for pixels in video.frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


# ---------------------------------------------------------------------------------------- images


@pytest.mark.smoke
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path: Path, fit: str) -> None:
    path = tmp_path / "a [1]*.png"
    path.write_bytes(encoded(gradient(48, 72)))
    image = read_image(str(path), height=48, width=72, fit=fit)
    assert np.array_equal(image.pixels, gradient(48, 72))
    assert (image.width, image.height) == (72, 48)
    assert image.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_pictures_decode_as_pillow_decodes_them(kind: str) -> None:
    data = encoded(gradient(48, 72), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data, height=48, width=72).pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(40, 60), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = decode_image(data, height=expected.height, width=expected.width)
    assert np.array_equal(image.pixels, np.asarray(expected))
    assert (image.width, image.height) == expected.size


def test_broken_exif_is_no_reason_to_refuse_a_photo() -> None:
    data = encoded(gradient(40, 60), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(data, height=40, width=60).width == 60


def test_crop_keeps_the_centre_undistorted() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 200  # the middle third, which is all that a square crop keeps
    assert (decode_image(encoded(pixels), height=64, width=64).pixels[:, 2:-2] == 200).all()


def test_crop_without_scaling_copies_whole_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (49, 73, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(noise), height=49, width=72).pixels, noise[:, :72])
    assert np.array_equal(decode_image(encoded(noise), height=48, width=73).pixels, noise[:48])


def test_pad_keeps_everything_between_black_bars() -> None:
    white = np.full((50, 100, 3), 255, np.uint8)
    pixels = decode_image(encoded(white), height=80, width=80, fit="pad").pixels
    assert (pixels[:20] == 0).all()
    assert (pixels[20:60] == 255).all()
    assert (pixels[60:] == 0).all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(16, 16), (16, 4000), (4000, 16), (481, 719), (1081, 1921)])
def test_any_shape_becomes_the_size_the_model_takes(size: tuple[int, int], fit: str) -> None:
    pixels = decode_image(encoded(gradient(*size)), height=480, width=720, fit=fit).pixels
    assert (pixels.shape, pixels.dtype) == ((480, 720, 3), np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "I"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    gray = np.full((32, 32), 255, np.uint8)
    gray[16:] = 0
    if mode.startswith("I"):
        picture = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(gray).convert("RGBA").convert(mode)
    pixels = decode_image(encoded(picture), height=32, width=32).pixels
    assert (pixels[:16] == 255).all()
    assert (pixels[16:] == 0).all()


def test_sixteen_bit_gray_keeps_its_tones() -> None:
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    pixels = decode_image(encoded(Image.fromarray(ramp)), height=32, width=32).pixels
    assert np.array_equal(pixels[..., 1], (ramp >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(kind: str) -> None:
    layers = np.zeros((32, 32, 4), np.uint8)
    layers[:16] = (255, 0, 0, 255)
    pixels = decode_image(encoded(layers, kind, lossless=True), height=32, width=32).pixels
    assert (pixels[:16] == (255, 0, 0)).all()
    assert (pixels[16:] == 255).all()


def test_palette_transparency_is_laid_on_white() -> None:
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    pixels = decode_image(encoded(picture, transparency=b"\xff\x00"), height=32, width=32).pixels
    assert (pixels == 255).all()


def test_cmyk_photo_becomes_rgb() -> None:
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    pixels = decode_image(encoded(red, "JPEG"), height=32, width=32).pixels
    assert (np.abs(pixels.astype(int) - (255, 0, 0)) < 5).all()


def test_colour_profile_is_converted_to_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = lab.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    green = np.zeros((32, 32, 3), np.uint8)
    green[..., 1] = 255
    plain = decode_image(encoded(green, icc_profile=lab), height=32, width=32).pixels
    converted = decode_image(encoded(green, icc_profile=swapped), height=32, width=32).pixels
    assert np.array_equal(plain, green)
    assert (np.abs(converted.astype(int) - (255, 0, 0)) < 8).all()


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200])
def test_broken_colour_profile_is_ignored(profile: bytes) -> None:
    data = encoded(gradient(32, 32), icc_profile=profile)
    assert np.array_equal(decode_image(data, height=32, width=32).pixels, gradient(32, 32))


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 2**30) + b"IDAT"


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + (10).to_bytes(4, "little") + b"\0\0\0\0" + size
    return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk


ANIMATION = {"save_all": True, "append_images": [Image.new("RGB", (32, 32), "red")]}
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
REFUSED = {
    "empty": (b"", "empty file"),
    "text": (b"hello, world", "must be a PNG, JPEG or WebP file"),
    "gif": (encoded(gradient(32, 32), "GIF"), "a GIF file"),
    "bmp": (encoded(gradient(32, 32), "BMP"), "a BMP file"),
    "tiff": (encoded(gradient(32, 32), "TIFF"), "a TIFF file"),
    "svg": (SVG, "an SVG file"),
    "mp4": (b"\0\0\0\x20ftypisom" + b"\0" * 99, "a video file"),
    "heic": (b"\0\0\0\x20ftypheic" + b"\0" * 99, "a HEIC file"),
    "10-bit heic": (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix" + b"\0" * 99, "a HEIC file"),
    "burst heic": (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc" + b"\0" * 99, "a HEIC file"),
    "avif": (encoded(gradient(32, 32), "AVIF"), "an AVIF file"),
    "mif1 avif": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + b"\0" * 99, "an AVIF file"),
    "animated avif": (b"\0\0\0\x18ftypavis\0\0\0\0msf1avis" + b"\0" * 99, "an AVIF file"),
    "jpeg xl": (b"\xff\x0a" + b"\0" * 99, "a JPEG XL file"),
    "truncated png": (encoded(gradient(200, 200))[:300], "does not decode"),
    "truncated jpeg": (encoded(gradient(200, 200), "JPEG")[:900], "does not decode"),
    "truncated webp": (encoded(gradient(200, 200), "WEBP")[:300], "does not decode"),
    "header alone": (b"\x89PNG\r\n\x1a\n", "does not decode"),
    "tiny": (encoded(gradient(15, 200)), "at least 16 pixels a side, got 200x15"),
    "bomb": (png_header(12_000, 10_001), "at most 120000000 pixels, got 12000x10001"),
    "huge bomb": (png_header(2**31 - 1, 2**31 - 1), "at most 120000000 pixels"),
    "webp bomb": (webp_header(16_000, 16_000), "at most 120000000 pixels"),
    "animated png": (encoded(Image.new("RGB", (32, 32)), "PNG", **ANIMATION), "2 frames"),
    "animated webp": (encoded(Image.new("RGB", (32, 32)), "WEBP", **ANIMATION), "2 frames"),
}


@pytest.mark.smoke
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_usable_picture_is_refused_in_one_line(case: str) -> None:
    data, words = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RequestError) as caught:
            decode_image(data, height=480, width=720, name="a.png")
    message = str(caught.value)
    assert message.startswith("image: ")
    assert words in message
    assert "a.png" in message
    assert "\n" not in message


def test_a_picture_near_the_pixel_limit_is_read_without_a_warning() -> None:
    data = encoded(Image.new("L", (10_000, 9_500), 7))  # over the limit at which PIL warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode_image(data, height=48, width=72).pixels == 7).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "must be a file, got the folder"),
        (lambda path: os.mkfifo(path), "a pipe or device"),
        (lambda path: path.symlink_to(path.parent / "gone"), "no such file"),
        (lambda path: path.open("wb").truncate(100_000_001), "at most 100000000 bytes"),
    ],
    ids=["missing", "folder", "pipe", "dangling link", "over-large"],
)
def test_what_is_no_readable_file_is_refused(tmp_path: Path, make: object, words: str) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(RequestError, match=words) as caught:
        read_image(str(tmp_path / "a.png"), height=480, width=720)
    assert str(caught.value).startswith("image: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(gradient(32, 32)))
    path.chmod(stat.S_IWUSR)
    with pytest.raises(RequestError, match="permission"):
        read_image(str(path), height=480, width=720)


@pytest.mark.parametrize("address", ["nosuch://a.png", "http://127.0.0.1:9/a.png", "a\0.png", ""])
def test_a_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match=r"^image: "):
        read_image(address, height=480, width=720)


def test_a_picture_is_read_from_any_fsspec_filesystem() -> None:
    fsspec.filesystem("memory").pipe("/pictures/a.png", encoded(gradient(48, 72)))
    image = read_image("memory://pictures/a.png", height=48, width=72)
    assert np.array_equal(image.pixels, gradient(48, 72))


def test_threads_decode_the_same_pixels() -> None:
    data = encoded(gradient(300, 400), "JPEG")
    with ThreadPoolExecutor(4) as pool:
        images = pool.map(lambda _: decode_image(data, height=48, width=72), range(16))
        assert len({image.pixels.tobytes() for image in images}) == 1


@needs_data
def test_real_photos_become_conditioning_images() -> None:
    for path in sorted((DATA / "images").glob("*.[jp]*")):
        with Image.open(path) as source:
            upright = ImageOps.exif_transpose(source)
        image = read_image(str(path), height=480, width=720)
        assert image.pixels.shape == (480, 720, 3)
        assert (image.width, image.height) == upright.size
        assert image.pixels.std() > 10


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`data` with bytes changed, cut out, doubled or the end missing."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            at, length = int(rng.integers(len(data))), int(rng.integers(1, 16))
            match rng.integers(4):
                case 0:
                    mutant[at : at + length] = rng.bytes(length)
                case 1:
                    del mutant[at : at + length]
                case 2:
                    mutant[at:at] = mutant[at : at + length]
                case _:
                    mutant[at : at + 1] = bytes([rng.choice([0, 1, 127, 128, 255])])
        yield bytes(mutant[: rng.integers(len(mutant))] if rng.random() < 0.1 else mutant)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_decode_or_are_refused(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(gradient(24, 32), kind, exif=exif, icc_profile=profile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mutant in mutations(data, 300, seed=0):
            with suppress(VidgenError):
                assert decode_image(mutant, height=32, width=48).pixels.shape == (32, 48, 3)


# ---------------------------------------------------------------------------------------- videos


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("num_frames", "fps"), [(1, 8), (2, 8), (49, 8), (5, 30000 / 1001), (7, 12.5), (3, 23.976)]
)
def test_a_written_clip_reads_back(tmp_path: Path, num_frames: int, fps: float) -> None:
    video = moving(num_frames, fps=fps)
    write_video(tmp_path / "clip.partial", video)
    again = read_video(tmp_path / "clip.partial")
    assert again.frames.shape == video.frames.shape
    assert again.fps == pytest.approx(fps, rel=1e-6)
    assert psnr(again.frames, video.frames) > 35


WRITE = """
import sys, pathlib, numpy
from vidgen_ray.video_io import write_video
from vidgen_ray.schema import Video
write_video(pathlib.Path(sys.argv[2]), Video(numpy.load(sys.argv[1]), 8.0), comment="a")
"""


def test_equal_clips_make_equal_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", moving().frames)
    for filler in ("85", "170"):  # what glibc fills unwritten memory with, which must not matter
        command = [sys.executable, "-c", WRITE, tmp_path / "frames.npy", tmp_path / filler]
        root = str(Path(video_io.__file__).parents[1])
        env = {**os.environ, "PYTHONPATH": root, "MALLOC_PERTURB_": filler}
        subprocess.run(command, env=env, check=True)
    assert (tmp_path / "85").read_bytes() == (tmp_path / "170").read_bytes()


def test_a_clip_says_what_it_is_and_starts_while_it_downloads(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(), comment="Synthetic media: made by a model")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(tmp_path / "a.mp4") as container:
        stream = container.streams.video[0]
        assert container.metadata["comment"] == "Synthetic media: made by a model"
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate, stream.start_time) == (9, 8, 0)
        assert stream.duration * stream.time_base == Fraction(9, 8)


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (90, 160, 30)]
)
def test_colours_are_bt709_and_tagged_so(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.full((2, 32, 32, 3), colour, np.uint8)
    write_video(tmp_path / "a.mp4", Video(frames, 8.0), crf=1)
    assert b"colrnclx\0\1\0\1\0\1\0" in (tmp_path / "a.mp4").read_bytes()
    with av.open(tmp_path / "a.mp4") as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1)
    assert frame.color_range == 1  # limited: 16 to 235
    luma = 16 + 219 / 255 * np.dot((0.2126, 0.7152, 0.0722), colour)
    assert abs(float(frame.to_ndarray()[4, 4]) - luma) <= 1
    assert np.abs(read_video(tmp_path / "a.mp4").frames.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("height", [480, 720])
def test_untagged_colours_are_read_as_players_read_them(tmp_path: Path, height: int) -> None:
    green = np.zeros((2, height, 1280 if height == 720 else 640, 3), np.uint8)
    green[..., 1] = 255
    matrix = "ITU709" if height == 720 else "ITU601"
    with av.open(tmp_path / "a.mp4", "w") as output:
        stream = output.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.height, stream.width = green.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in green:
            rgb = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace=matrix)
            frame.colorspace = 2
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert np.abs(read_video(tmp_path / "a.mp4").frames.astype(int) - (0, 255, 0)).max() <= 4


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (np.zeros((2, 33, 32, 3), np.uint8), 8.0, "height: must be even"),
        (np.zeros((2, 32, 33, 3), np.uint8), 8.0, "width: must be even"),
        (np.zeros((0, 32, 32, 3), np.uint8), 8.0, "frames: must be"),
        (np.zeros((2, 32, 32, 3), np.float32), 8.0, "frames: must be"),
        (np.zeros((2, 32, 32), np.uint8), 8.0, "frames: must be"),
        (np.zeros((2, 32, 32, 3), np.uint8), 0.0, "fps: must be"),
        (np.zeros((2, 32, 32, 3), np.uint8), float("nan"), "fps: must be"),
    ],
)
def test_a_video_that_h264_cannot_hold_is_refused(
    tmp_path: Path, frames: np.ndarray, fps: float, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        write_video(tmp_path / "a.mp4", Video(frames, fps))
    assert not (tmp_path / "a.mp4").exists()


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file can grow beyond `limit_bytes`: the kernel refuses as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.98, 0.9999])
def test_a_full_disk_leaves_no_part_of_a_clip(tmp_path: Path, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 96, 128, 3), dtype=np.uint8)
    path = tmp_path / "a.mp4"
    write_video(path, Video(noise, 8.0))
    size = path.stat().st_size
    path.unlink()
    with full_disk(int(size * share)), pytest.raises(ArtifactError, match=r"a\.mp4"):
        write_video(path, Video(noise, 8.0))
    assert not path.exists()


@pytest.mark.parametrize("name", ["gone/a.mp4", "folder"])
def test_a_path_that_no_file_can_have_is_an_artifact_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_video(tmp_path / name, moving())
    assert (tmp_path / "folder").is_dir()


@pytest.mark.parametrize(
    ("container", "codec", "pix_fmt"),
    [
        ("mov", "mpeg4", "yuv420p"),
        ("matroska", "libx264", "yuv444p"),
        ("webm", "libvpx", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("mpegts", "mpeg2video", "yuv420p"),
        ("flv", "libx264", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_common_formats_are_read(container: str, codec: str, pix_fmt: str) -> None:
    video = moving(num_frames=8, fps=25)
    again = read_video(io.BytesIO(video_bytes(video, container, codec, pix_fmt)))
    assert again.frames.shape == video.frames.shape
    assert again.fps == pytest.approx(25, rel=1e-3)
    assert psnr(again.frames, video.frames) > 18


def test_max_frames_stops_early(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving())
    assert len(read_video(tmp_path / "a.mp4", max_frames=4).frames) == 4


def test_a_clip_is_read_from_any_fsspec_filesystem(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving())
    fsspec.filesystem("memory").pipe("/clips/a.mp4", (tmp_path / "a.mp4").read_bytes())
    assert len(read_video("memory://clips/a.mp4").frames) == 9


def test_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving())
    monkeypatch.setattr(video_io, "MAX_VIDEO_BYTES", 5 * 64 * 96 * 3)
    with pytest.raises(RequestError, match="frame 6"):
        read_video(tmp_path / "a.mp4")


def audio_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def truncated(share: float) -> bytes:
    data = video_bytes(moving(30), "matroska", "libx264")
    mp4 = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(mp4, "w", format="mp4", options={"movflags": "frag_keyframe"}) as output,
    ):
        copy = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    return mp4.getvalue()[: int(len(mp4.getvalue()) * share)]


NO_VIDEO = {
    "empty": b"",
    "text": b"hello\n" * 1000,
    "png": encoded(gradient(64, 64)),
    "jpeg": encoded(gradient(64, 64), "JPEG"),
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    "file list": b"ffconcat version 1.0\nfile a.mp4\n",
    "audio": audio_only(),
    "cut fragment": truncated(0.05),
}


@pytest.mark.smoke
@pytest.mark.parametrize("case", NO_VIDEO)
def test_what_is_no_video_is_refused_in_one_line(case: str) -> None:
    with pytest.raises(RequestError, match=r"^video: must [^\n]*$"):
        read_video(io.BytesIO(NO_VIDEO[case]))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9, 0.999])
def test_a_clip_that_breaks_off_is_refused(tmp_path: Path, share: float) -> None:
    write_video(tmp_path / "a.mp4", moving())
    data = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(RequestError, match=r"^video: must "):
        read_video(io.BytesIO(data[: int(len(data) * share)]))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="video: no such file"):
        read_video(tmp_path / "gone.mp4")
    with pytest.raises(RequestError, match="video: must be a file, got the folder"):
        read_video(str(tmp_path))


@needs_data
def test_display_rotation_is_applied() -> None:
    path = DATA / "clips" / "decord_rotate90.mov"
    video = read_video(path)
    assert video.frames.shape == (3, 568, 320, 3)
    assert video.fps == 30
    with av.open(path) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    clockwise = stored[::-1].transpose(1, 0, 2)
    assert psnr(video.frames[0], clockwise) > 30


@needs_data
def test_a_corrupted_file_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^video: must be a whole video file.*corrupted"):
        read_video(DATA / "clips" / "decord_corrupted.mp4")


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "fps"),
    [
        ("cog_1.mp4", (49, 480, 720, 3), 8),
        ("intel_asl_thanks.mkv", (51, 480, 640, 3), 30),
        ("intel_car-detection.mp4", (60, 432, 768, 3), 12.5),
    ],
)
def test_real_clips_are_read(name: str, shape: tuple[int, ...], fps: float) -> None:
    video = read_video(DATA / "clips" / name, max_frames=60)
    assert (video.frames.shape, video.fps) == (shape, fps)


@needs_data
def test_a_real_clip_loses_little_when_written(tmp_path: Path) -> None:
    video = read_video(DATA / "clips" / "cog_1.mp4", max_frames=9)
    write_video(tmp_path / "a.mp4", video)
    assert psnr(read_video(tmp_path / "a.mp4").frames, video.frames) > 38


def test_damaged_clips_decode_or_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(5))
    sources = [(tmp_path / "a.mp4").read_bytes(), video_bytes(moving(5), "matroska", "libx264")]
    for data in sources:
        for mutant in mutations(data, 100, seed=1):
            with suppress(VidgenError):
                assert read_video(io.BytesIO(mutant)).frames.dtype == np.uint8
