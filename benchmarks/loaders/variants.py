"""What is measured: each loader with each encoding and decoder, and what has to be installed for it.

Imports nothing that is measured, so that every environment can read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ENCODINGS = ("jpeg", "raw")
NOISE = 128
"""Normals that ours draws for each image, in the mode of this name."""


@dataclass(frozen=True)
class Loader:
    """A library, or a limit that no library can beat, in an environment of its own."""

    name: str
    module: str
    """Its file in this folder."""
    title: str
    environment: str
    requirements: tuple[str, ...] = ()
    """For pip, beside torch and what constraints.txt pins. Where empty, the dependencies of this project."""
    libraries: tuple[str, ...] = ()
    """pkg-config names of system libraries that its build needs."""


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    loader: Loader
    encoding: str
    mode: str = ""
    """The decoder, or what else distinguishes this line."""
    threads: int = 0
    """Decode threads or worker processes; 0: as the command says."""

    @property
    def name(self) -> str:
        """Unique, e.g. `litdata-jpeg-simplejpeg`."""
        return "-".join(part for part in (self.loader.name, self.encoding, self.mode) if part)


OURS = Loader("ours", "ours", "leanstream", "ours")
LIMIT = Loader("limit", "limits", "limit", "ours")
WEBDATASET = Loader(
    "webdataset", "webdataset_tars", "webdataset 1.0.2", "webdataset", ("webdataset==1.0.2", "numpy", "pillow")
)
DATASETS = Loader(
    "datasets", "datasets_streaming", "datasets 5.2 streaming", "datasets", ("datasets==5.2.0", "numpy", "pillow")
)
MOSAICML = Loader(
    "mosaicml",
    "mosaicml_mds",
    "mosaicml-streaming 0.13",
    "mosaicml",
    ("mosaicml-streaming==0.13.0", "pillow", "simplejpeg"),
)
LITDATA = Loader(
    "litdata", "litdata_chunks", "litdata 0.2.76", "litdata", ("litdata==0.2.76", "numpy", "pillow", "simplejpeg")
)
FFCV = Loader(
    "ffcv", "ffcv_beton", "ffcv 1.0.2", "ffcv", ("ffcv==1.0.2", "numpy", "pillow"), ("opencv4", "libturbojpeg")
)
LOADERS = (OURS, LIMIT, WEBDATASET, DATASETS, MOSAICML, LITDATA, FFCV)

VARIANTS = (
    Variant(LIMIT, "jpeg", "simplejpeg"),
    Variant(LIMIT, "jpeg", "simplejpeg-fast"),
    Variant(OURS, "jpeg"),
    Variant(OURS, "jpeg", "noise"),
    Variant(FFCV, "jpeg"),
    Variant(WEBDATASET, "jpeg"),
    Variant(DATASETS, "jpeg"),
    Variant(MOSAICML, "jpeg", "pillow"),
    Variant(MOSAICML, "jpeg", "simplejpeg"),
    Variant(LITDATA, "jpeg", "pillow"),
    Variant(LITDATA, "jpeg", "simplejpeg"),
    Variant(LIMIT, "raw", "gather", threads=1),
    Variant(LIMIT, "raw", "gather-threads"),
    Variant(OURS, "raw"),
    Variant(OURS, "raw", "noise"),
    Variant(FFCV, "raw"),
    Variant(WEBDATASET, "raw"),
    Variant(DATASETS, "raw"),
    Variant(MOSAICML, "raw"),
    Variant(LITDATA, "raw"),
)


def chosen(only: Sequence[str], encodings: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of these loaders and encodings, in the table's order; all loaders where `only` is empty."""
    return tuple(
        variant for variant in VARIANTS if (not only or variant.loader.name in only) and variant.encoding in encodings
    )


def find(name: str) -> Variant:
    """The variant of this name."""
    return next(variant for variant in VARIANTS if variant.name == name)
