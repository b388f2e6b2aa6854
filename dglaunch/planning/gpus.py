"""GPUs as data: what their vendors' data sheets say of memory, arithmetic and links, so that a plan needs none at hand.

find_gpu("H100"), find_gpu("NVIDIA H100 80GB HBM3")     # a GPU by its name, or by the name that torch reports
find_gpu("80GiB")                                       # any GPU with so much memory: what fits is known, speed is not
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dglaunch.errors import UserError
from dglaunch.system import Machine

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its vendor describes it."""

    name: str
    """As people call it, and unambiguous: "H100 SXM"."""
    reported: tuple[str, ...] = ()
    """The names by which torch reports it."""
    memory: int
    """Bytes that the device reports, about: less than on its box, where 80 GB mean 80 GiB before what is reserved."""
    peaks: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Dense TFLOP/s by type, sums in float32, no sparsity: bfloat16 (float16 is the same), tf32, float32 (without tensor
    cores, which is what torch does unasked), fp8, int8. A type that it has no units for, or that has no source, is not
    there."""
    bandwidth: float = 0.0
    """GB/s of its memory."""
    link: float = 0.0
    """GB/s in one direction from this GPU to the others of its machine."""
    link_kind: str = ""
    capability: tuple[int, int] | None = None
    """Compute capability; of AMD's, what torch reports in its place."""
    same_compute: str = ""
    """Another GPU with the same chip and the same peaks, whose published runs are this one's too."""
    source: str = ""

    @property
    def known(self) -> bool:
        """Whether more than its memory is known."""
        return bool(self.peaks)

    @property
    def machine(self) -> Machine:
        """It in the place of this machine's GPU; the type of the weights is still to be chosen."""
        name = self.reported[0] if self.reported else self.name
        return Machine(name=name, memory=self.memory, dtype="bfloat16", capability=self.capability)


def _gib(size: float) -> int:
    return int(size * GIB)


def _peaks(bfloat16: float, tf32: float, float32: float, fp8: float | None, int8: float) -> Mapping[str, float]:
    peaks = {"bfloat16": bfloat16, "float16": bfloat16, "tf32": tf32, "float32": float32, "int8": int8}
    return MappingProxyType(peaks if fp8 is None else peaks | {"fp8": fp8})


_A100 = _peaks(312, 156, 19.5, None, 624)
_H100 = _peaks(989.4, 494.7, 67, 1978.9, 1978.9)

GPUS = (
    Gpu(
        name="A100 40GB SXM", reported=("NVIDIA A100-SXM4-40GB",), memory=_gib(39.4), peaks=_A100, bandwidth=1555,
        link=300, link_kind="NVLink 3", capability=(8, 0), same_compute="A100 80GB SXM",
        source="NVIDIA A100 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="A100 40GB PCIe", reported=("NVIDIA A100-PCIE-40GB",), memory=_gib(39.4), peaks=_A100, bandwidth=1555,
        link=32, link_kind="PCIe 4", capability=(8, 0), same_compute="A100 80GB SXM",
        source="NVIDIA A100 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="A100 80GB SXM", reported=("NVIDIA A100-SXM4-80GB",), memory=_gib(79.1), peaks=_A100, bandwidth=2039,
        link=300, link_kind="NVLink 3", capability=(8, 0), source="NVIDIA A100 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="A100 80GB PCIe", reported=("NVIDIA A100 80GB PCIe",), memory=_gib(79.1), peaks=_A100, bandwidth=1935,
        link=32, link_kind="PCIe 4", capability=(8, 0), same_compute="A100 80GB SXM",
        source="NVIDIA A100 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="H100 SXM", reported=("NVIDIA H100 80GB HBM3",), memory=_gib(79.1), peaks=_H100, bandwidth=3350,
        link=450, link_kind="NVLink 4", capability=(9, 0), source="NVIDIA H100 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="H100 PCIe", reported=("NVIDIA H100 PCIe",), memory=_gib(79.1), peaks=_peaks(756.5, 378, 51, 1513, 1513),
        bandwidth=2000, link=64, link_kind="PCIe 5", capability=(9, 0), source="NVIDIA H100 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="H100 NVL", reported=("NVIDIA H100 NVL",), memory=_gib(93.1), peaks=_peaks(835.5, 417.5, 60, 1670.5, 1670.5),
        bandwidth=3900, link=64, link_kind="PCIe 5", capability=(9, 0), source="NVIDIA H100 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="H200", reported=("NVIDIA H200",), memory=_gib(139.8), peaks=_H100, bandwidth=4800, link=450,
        link_kind="NVLink 4", capability=(9, 0), same_compute="H100 SXM", source="NVIDIA H200 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="B200", reported=("NVIDIA B200",), memory=_gib(178.3), peaks=_peaks(2250, 1100, 75, 4500, 4500),
        bandwidth=7700, link=900, link_kind="NVLink 5", capability=(10, 0),
        source="NVIDIA HGX B200 data sheet, an eighth of it; memory as pytorch/ao#4002 read it from the device",
    ),
    Gpu(
        name="L4", reported=("NVIDIA L4",), memory=_gib(22.0), peaks=_peaks(121, 60, 30.3, 242.5, 242.5), bandwidth=300,
        link=32, link_kind="PCIe 4", capability=(8, 9), source="NVIDIA L4 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="L20", reported=("NVIDIA L20",), memory=_gib(44.4), peaks=_peaks(119.5, 59.8, 59.8, 239, 239), bandwidth=864,
        link=32, link_kind="PCIe 4", capability=(8, 9), source="NVIDIA L20 GPU data sheet",
    ),
    Gpu(
        name="L40", reported=("NVIDIA L40",), memory=_gib(44.4), peaks=_peaks(181.05, 90.5, 90.5, 362, 362),
        bandwidth=864, link=32, link_kind="PCIe 4", capability=(8, 9), source="NVIDIA L40 GPU data sheet",
    ),
    Gpu(
        name="L40S", reported=("NVIDIA L40S",), memory=_gib(44.4), peaks=_peaks(362.05, 183, 91.6, 733, 733),
        bandwidth=864, link=32, link_kind="PCIe 4", capability=(8, 9), source="NVIDIA L40S GPU data sheet",
    ),
    Gpu(
        name="A10", reported=("NVIDIA A10",), memory=_gib(22.1), peaks=_peaks(125, 62.5, 31.2, None, 250), bandwidth=600,
        link=32, link_kind="PCIe 4", capability=(8, 6), source="NVIDIA A10 Tensor Core GPU data sheet",
    ),
    Gpu(
        name="A10G", reported=("NVIDIA A10G",), memory=_gib(22.0), peaks=_peaks(70, 35, 31.5, None, 140), bandwidth=600,
        link=32, link_kind="PCIe 4", capability=(8, 6), source="NVIDIA A10G data sheet of Amazon EC2 G5",
    ),
    Gpu(
        name="RTX 3090", reported=("NVIDIA GeForce RTX 3090",), memory=_gib(23.6), peaks=_peaks(71, 35.6, 35.6, None, 284),
        bandwidth=936, link=32, link_kind="PCIe 4", capability=(8, 6), source="NVIDIA Ampere GA102 architecture paper",
    ),
    Gpu(
        name="RTX 4090", reported=("NVIDIA GeForce RTX 4090",), memory=_gib(23.6),
        peaks=_peaks(165.2, 82.6, 82.6, 330.3, 660.6), bandwidth=1008, link=32, link_kind="PCIe 4", capability=(8, 9),
        source="NVIDIA Ada GPU architecture paper",
    ),
    Gpu(
        name="RTX 5090", reported=("NVIDIA GeForce RTX 5090",), memory=_gib(31.4),
        peaks=_peaks(209.5, 104.8, 104.8, 419, 838), bandwidth=1792, link=64, link_kind="PCIe 5", capability=(12, 0),
        source="NVIDIA RTX Blackwell GPU architecture paper",
    ),
    Gpu(
        name="RTX 6000 Ada", reported=("NVIDIA RTX 6000 Ada Generation",), memory=_gib(47.4),
        peaks=_peaks(364.2, 182.1, 91.1, 728.5, 728.5), bandwidth=960, link=32, link_kind="PCIe 4", capability=(8, 9),
        source="NVIDIA Ada GPU architecture paper",
    ),
    Gpu(
        name="MI300X", reported=("AMD Instinct MI300X",), memory=_gib(191.5),
        peaks=_peaks(1307.4, 653.7, 163.4, 2614.9, 2614.9), bandwidth=5300, link=448, link_kind="Infinity Fabric",
        capability=(9, 4), source="AMD Instinct MI300X data sheet",
    ),
)  # fmt: skip
"""The GPUs that a plan can be made for. A link is the whole of what a GPU can send at once: over NVLink or Infinity Fabric
to all others together (an MI300X has 64 of its 448 GB/s to each), over PCIe through its slot. NVLink bridges between pairs
of PCIe cards are not counted.

The data sheets themselves could not be opened where this was written: `source` names where a figure belongs. Compared with
what others quote of them were bfloat16 of the A100, H100 (all three), H200, B200, MI300X, L20, L40, L40S, A10, RTX 3090, 4090
and 5090, all peaks of L40 and L40S, most bandwidths and links, and the B200's memory. Not compared: the other types of the other GPUs, all of
the L4, A10G and RTX 6000 Ada, and what each device reports as its memory (right to about 1 %)."""

SHORT = {"H100": "H100 SXM", "A100 40GB": "A100 40GB SXM", "A100 80GB": "A100 80GB SXM", "A100 SXM": "A100 80GB SXM",
         "A100 PCIe": "A100 80GB PCIe", "H200 SXM": "H200", "B200 SXM": "B200"}  # fmt: skip
"""Shorter names: of a GPU that comes in several forms, the one that most servers have."""

_SIZE = re.compile(r"(?P<size>\d+(?:\.\d+)?)\s*gi?b", re.IGNORECASE)
_NOT_NAMES = re.compile(r"nvidia|amd|geforce|rtx|instinct|tensor core gpu|generation|hbm\w*|[^a-z0-9]")


def _plain(name: str) -> str:
    """A name without its vendor, spaces and dashes, as they are written in many ways."""
    return _NOT_NAMES.sub("", name.lower())


_BY_NAME = {_plain(name): gpu for gpu in GPUS for name in (gpu.name, *gpu.reported)}
_BY_NAME |= {_plain(short): _BY_NAME[_plain(name)] for short, name in SHORT.items()}


def find_gpu(name: str) -> Gpu:
    """Return a GPU by its name ("H100", "rtx-4090", "NVIDIA L40S"), or one of which only the memory is known ("80GiB").

    Raises:
        UserError: there is none of this name; with the nearest names.
    """
    if size := _SIZE.fullmatch(name.strip()):
        return _of_memory(float(size["size"]), name)
    if (found := _BY_NAME.get(_plain(name))) is not None:
        return found
    if _plain(name) == "a100":
        raise UserError(
            f"--gpu {name}: an A100 has 40 or 80 GB of memory. Say which: --gpu A100-40GB or --gpu A100-80GB."
        )
    if not name.strip():
        raise UserError("--gpu needs the name of a GPU, such as H100, or its memory, such as 80GiB.")
    near = dict.fromkeys(
        _BY_NAME[match].name for match in difflib.get_close_matches(_plain(name), _BY_NAME, n=3, cutoff=0.0)
    )
    raise UserError(
        f"--gpu {name} is not known. The nearest: {', '.join(near)}; all: {', '.join(gpu.name for gpu in GPUS)}. Of another "
        "GPU give the memory, such as --gpu 48GiB: what fits is then answered, and time as a range over the GPUs of that size."
    )


def gpu_of(machine: Machine) -> Gpu | None:
    """Return the GPU that a machine has, or that a plan put in its place; None if it is a CPU or not in the table."""
    try:
        return find_gpu(machine.name)
    except UserError:
        return None


def _of_memory(size: float, name: str) -> Gpu:
    if not 1 <= size <= 1024:
        raise UserError(f"--gpu {name}: a GPU's memory is 1 to 1024 GiB.")
    return Gpu(name=f"{size:g}GiB", memory=_gib(size))


def gpus_of_memory(memory: int) -> tuple[Gpu, ...]:
    """Return the known GPUs whose memory is about this (9 % more or less: of the 24 GB on its box an L4 reports 22.0 GiB)."""
    return tuple(gpu for gpu in GPUS if abs(gpu.memory / memory - 1) <= 0.09)
