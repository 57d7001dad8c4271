"""A picture costs little, is stored fitted and without EXIF, and holds up nobody."""

import asyncio
import dataclasses
import hashlib
import io
import resource
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from in_process import client_of, make_context
from PIL import ExifTags, Image
from serving_process import picture

from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.image_io import decode_image, decoded_bytes, read_image
from vidgen_ray.serving.http import source_image
from vidgen_ray.serving.http.context import Context
from vidgen_ray.serving.http.create_job import JobCreator
from vidgen_ray.serving.queue.uploads import upload_name


def photograph(width: int = 1500, height: int = 1000) -> bytes:
    """A JPEG that lies on its side, and says where and by whom it was taken."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Ada Example"
    exif[ExifTags.Base.Copyright] = "(c) Example Press"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    buffer = io.BytesIO()
    ramp = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    ramp.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.fixture
def context(tmp_path: Path, tiny_overrides: dict[str, object]) -> Context:
    return make_context(tmp_path, settings=tiny_overrides)


async def post(client: httpx.AsyncClient, image: bytes, **fields: object) -> httpx.Response:
    files = {"input_reference": ("a.jpg", image)}
    data = {"prompt": "push in", "seed": "1", **{k: str(v) for k, v in fields.items()}}
    return await client.post("/v1/videos", data=data, files=files)


def test_what_is_stored_is_the_fitted_picture_without_exif(context: Context) -> None:
    photo = photograph()

    async def create() -> str:
        async with client_of(context) as client:
            answer = await post(client, photo)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

    job = context.store.get(asyncio.run(create()))
    assert job is not None
    stored = context.artifacts.read(upload_name(job.id))
    assert stored is not None
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.format, image.size) == ("PNG", (96, 64))
        assert not image.getexif()
        assert "icc_profile" not in image.info
    for trace in (b"Ada Example", b"GPS"):
        assert trace not in stored
    # What the Generator reads are the pixels that the photograph itself would give.
    address = ArtifactStore(context.arguments.output).address_of(upload_name(job.id))
    read = read_image(address, height=64, width=96).pixels
    assert np.array_equal(read, decode_image(photo, height=64, width=96).pixels)
    assert (
        '"source_image":{"sha256":"' + hashlib.sha256(photo).hexdigest() + '","width":1000,'
        '"height":1500,"artist":"Ada Example","copyright":"(c) Example Press"}'
    ) in job.request


def test_a_small_picture_does_not_wait_for_large_ones(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = source_image.decode_image

    def slow_when_large(data: bytes, **options: object) -> object:
        if len(data) > 2000:
            assert release.wait(20)
        return real(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(source_image, "decode_image", slow_when_large)
    monkeypatch.setattr(source_image, "_LARGE_BYTES", 100_000)

    async def scenario() -> None:
        async with client_of(context) as client:
            large = [asyncio.create_task(post(client, photograph())) for _ in range(4)]
            await asyncio.sleep(0.3)
            async with asyncio.timeout(10):
                small = await post(client, picture())
            assert small.status_code == 200, small.text
            assert not any(task.done() for task in large)
            release.set()
            assert {(await task).status_code for task in large} == {200}

    asyncio.run(scenario())


def test_the_first_adapter_check_holds_up_nobody(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    creator = context.job_creator
    _ = creator.checkpoint  # imports torch
    monkeypatch.setattr(creator, "loras", lambda: {"press": Path("/loras/press")})
    monkeypatch.setattr(
        creator, "_check_lora", lambda lora: None if lora is None else release.wait(20)
    )

    async def scenario() -> None:
        async with client_of(context) as client:
            checked = [
                asyncio.create_task(post(client, picture(), lora="press")) for _ in range(12)
            ]
            await asyncio.sleep(0.3)
            async with asyncio.timeout(10):
                plain = await post(client, picture())
                assert plain.status_code == 200, plain.text
                path = f"/v1/videos/{plain.json()['id']}"
                assert (await client.get(path)).status_code == 200
            assert not any(task.done() for task in checked)
            release.set()
            assert {(await task).status_code for task in checked} == {200}

    asyncio.run(scenario())


def encoded(kind: str, mode: str, width: int, height: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(
        mode, (width, height), 90 if mode in {"L", "P"} else (90, 120, 40, 255)[: len(mode)]
    ).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "need"),
    [
        (encoded("PNG", "RGB", 1200, 1000), 6_000_000),
        (encoded("PNG", "RGBA", 1200, 1000), 10_200_000),
        (encoded("WEBP", "RGB", 1200, 1000), 19_200_000),
        (encoded("JPEG", "RGB", 4800, 4000), 1_500_000),  # decoded at an eighth
        (encoded("JPEG", "RGB", 4800, 4000, progressive=True), 1_500_000 + 57_600_000),
    ],
)
def test_memory_is_known_before_a_pixel_is_decoded(
    image: bytes, need: int, context: Context
) -> None:
    assert decoded_bytes(image, height=64, width=96) == pytest.approx(need, rel=0.01)
    limited = {"max_decoded_image_bytes": need - need // 10}
    arguments = context.arguments.model_copy(update=limited)
    creator = JobCreator(arguments, context.job_creator._config, context.store, context.artifacts)
    refusing = dataclasses.replace(context, arguments=arguments, job_creator=creator)

    async def codes() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(context) as client, client_of(refusing) as other:
            return await post(client, image), await post(other, image)

    accepted, refused = asyncio.run(codes())
    assert accepted.status_code == 200, accepted.text
    assert refused.status_code == 422
    assert "MB of memory to decode" in refused.json()["error"]["message"]
    assert "scale it down" in refused.json()["error"]["message"]


def high_water_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_of_120_megapixels_hold_up_none_of_20_clients(context: Context) -> None:
    png = encoded("PNG", "RGB", 12_000, 10_000)
    jpeg = encoded("JPEG", "RGB", 12_000, 10_000)
    longest: list[float] = []

    async def ask(client: httpx.AsyncClient, done: asyncio.Event) -> None:
        while not done.is_set():
            start = time.monotonic()
            answer = await post(client, picture())
            path = f"/v1/videos/{answer.json()['id']}"
            assert (await client.get(path)).status_code == 200
            longest.append(time.monotonic() - start)
            assert (await client.delete(path)).status_code == 200
            await asyncio.sleep(0.3)

    async def scenario() -> list[int]:
        done = asyncio.Event()
        async with client_of(context) as client:
            await post(client, picture())
            clients = [asyncio.create_task(ask(client, done)) for _ in range(20)]
            await asyncio.sleep(1)
            answers = await asyncio.gather(*(post(client, each) for each in [png, jpeg] * 2))
            done.set()
            await asyncio.gather(*clients)
        return [answer.status_code for answer in answers]

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = high_water_mb()
    assert asyncio.run(scenario()) == [422, 200, 422, 200]
    rise_mb = high_water_mb() - before
    print(f"longest create and poll {max(longest):.2f} s, memory rose by {rise_mb:.0f} MB")
    assert max(longest) < 5
    assert rise_mb < 500


def profile() -> bytes:
    """An RGB profile that does not call itself sRGB."""
    from PIL import ImageCms

    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return plain.replace(b"s\0R\0G\0B", b"x\0R\0G\0B").replace(b"sRGB", b"xRGB")


@pytest.mark.parametrize(("kind", "limit_s"), [("PNG", 5.0), ("JPEG", 1.0)])
@pytest.mark.thorough
def test_a_picture_of_120_megapixels_costs_little(kind: str, limit_s: float) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    image = Image.new("RGB", (12_000, 10_000), (90, 120, 40))
    image.save(buffer, kind, icc_profile=profile(), exif=exif)
    del image
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    decoded = decode_image(buffer.getvalue(), height=480, width=720)
    assert time.process_time() - start < limit_s
    # Making the picture above took as much as decoding it may.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert (decoded.width, decoded.height) == (10_000, 12_000)
    assert np.abs(decoded.pixels.astype(int) - [90, 120, 40]).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_shrinking_first_changes_no_pixel_visibly(
    mode: str, orientation: int, fit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = np.mgrid[0:800, 0:1200]
    waves = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), (x + y) / 8], -1)
    image = Image.fromarray(waves.clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG", exif=exif, quality=95)
    shrunk = decode_image(buffer.getvalue(), height=64, width=96, fit=fit)  # type: ignore[arg-type]
    monkeypatch.setattr("vidgen_ray.image_io._ENOUGH", 1000)
    whole = decode_image(buffer.getvalue(), height=64, width=96, fit=fit)  # type: ignore[arg-type]
    assert (shrunk.width, shrunk.height) == (whole.width, whole.height)
    difference = np.abs(shrunk.pixels.astype(int) - whole.pixels.astype(int))
    assert difference.mean() < (2 if mode == "1" else 1)
    assert np.percentile(difference, 99) <= (12 if mode in {"1", "P"} else 4)
