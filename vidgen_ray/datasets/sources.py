"""What each dataset is, under which terms it may be used, and how to obtain its files."""

from dataclasses import dataclass
from typing import Literal

DatasetName = Literal["msr-vtt", "vatex", "panda70m", "webvid", "folder"]


@dataclass(frozen=True)
class Dataset:
    """Facts about a dataset: `obtain` says how to get its annotations, `videos` its clips.

    `address` is where `download` looks for `files` by default. The terms were read in 2026; the
    publisher's page prevails, and none of this is legal advice.
    """

    title: str
    licence: str
    terms: str | None
    page: str | None
    obtain: str
    videos: str
    address: str | None = None
    files: tuple[str, ...] = ()


DATASETS: dict[DatasetName, Dataset] = {
    "msr-vtt": Dataset(
        title="MSR-VTT",
        licence="none stated; research use",
        terms="The videos belong to their uploaders. Research only; ask them for anything else.",
        page="https://www.microsoft.com/en-us/research/publication/"
        "msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/",
        obtain="The publisher's server is gone; mirrors by others offer archives of annotations "
        "and clips, such as the default of `download`.",
        videos="Cut clips (video0.mp4 ...) are in the mirrors' archives; the whole videos were on "
        "YouTube, where many are gone. Nothing is fetched from there by this program.",
        address="https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data",
        files=("MSRVTT.zip",),
    ),
    "vatex": Dataset(
        title="VATEX",
        licence="CC-BY-4.0 (annotations)",
        terms="The licence covers the captions. The videos are clips of Kinetics-600 and belong "
        "to their uploaders.",
        page="https://eric-xw.github.io/vatex-website/",
        obtain="The publisher offers the annotations for download.",
        videos="Each is 10 s of a YouTube video, named by its id and the seconds; those who have "
        "Kinetics-600 have them. Nothing is fetched from YouTube by this program.",
        address="https://eric-xw.github.io/vatex-website/data",
        files=(
            "vatex_training_v1.0.json",
            "vatex_validation_v1.0.json",
            "vatex_public_test_english_v1.1.json",
        ),
    ),
    "panda70m": Dataset(
        title="Panda-70M",
        licence="Snap Inc. research licence; non-commercial",
        terms="Study, non-commercial research and validation only. A redistribution keeps the "
        "copyright notice. The videos belong to their uploaders.",
        page="https://snap-research.github.io/Panda-70M/",
        obtain="""Access is granted by hand:
  1. Read the licence on https://snap-research.github.io/Panda-70M/.
  2. Ask for the annotation files there, and wait for the publisher's approval.
  3. Put the CSV on this machine.
  4. vidgen dataset import panda70m FILE.csv --output metadata.jsonl
  5. metadata.to_fetch.csv lists the videos, which are their uploaders', with time spans.
     With those you may use in a folder, repeat step 4 with --videos FOLDER.""",
        videos="They are on their uploaders' pages, by URL and time span; fetch those you may use.",
    ),
    "webvid": Dataset(
        title="WebVid",
        licence="research use; previews of Shutterstock",
        terms="The publisher withdrew the dataset in 2024 at the rights holder's request. Have a "
        "licence for the clips you use.",
        page="https://github.com/m-bain/webvid",
        obtain="No longer offered.",
        videos="Clips of Shutterstock; those you have a licence for are found by their number.",
    ),
    "folder": Dataset(
        title="own folder",
        licence="not stated",
        terms=None,
        page=None,
        obtain="The files are yours; state their licence with --licence.",
        videos="The source names them, but the files do not exist.",
    ),
}
