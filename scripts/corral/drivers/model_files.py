"""Model files on the disk, one by one: where they lie, what their headers say, which belong together.

Reads names, sizes and headers, never a tensor. A directory of models is whatever people copied into
it, so the walk has limits, links may lead in circles, and a file that turns out to be a pipe or a torn
download becomes a problem in words instead of an exception.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from corral.formats import gguf
from corral.formats.gguf import Gguf, GgufError, Kind

FILES_MAX = 10_000
DIRECTORIES_MAX = 10_000
DEPTH_MAX = 8

ENDING = ".gguf"
# llama.cpp's own pattern for the shards of a split model: it finds the others by the name of the first.
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.ASCII)


class ModelFile(NamedTuple):
    """A file that has been looked at, with its further shards. Without a header there is a problem."""

    path: Path
    header: Gguf | None
    problem: str | None
    size_bytes: int
    modified_at: int  # seconds since 1970

    @property
    def is_projector(self) -> bool:
        by_header = self.header is not None and self.header.kind is Kind.PROJECTOR
        return by_header or self.path.name.lower().startswith("mmproj")

    @property
    def is_model(self) -> bool:
        """Whether it can be served: no further shard, no projector, adapter or bare vocabulary."""
        if self.is_projector or is_further_shard(self.path):
            return False
        return self.header is None or (self.header.kind is Kind.MODEL and self.header.split_index == 0)


def find(root: Path, warnings: list[str]) -> list[Path]:
    """All model files below `root`, the nearest first, then by name."""
    found = list(islice(_walk(root, warnings), FILES_MAX + 1))
    if len(found) > FILES_MAX:
        warnings.append(f"{root} holds more than {FILES_MAX} model files: the others are left out")
    return found[:FILES_MAX]


def _walk(root: Path, warnings: list[str]) -> Iterator[Path]:
    """Level by level, and into no directory twice."""
    seen: set[tuple[int, int]] = set()
    level = [root]
    for _ in range(DEPTH_MAX + 1):
        below: list[Path] = []
        for directory in level:
            if len(seen) == DIRECTORIES_MAX:
                warnings.append(
                    f"{root} holds more than {DIRECTORIES_MAX} directories: the others are left out"
                )
                return
            if _is_new(directory, seen):
                files, directories = _entries(directory, warnings)
                yield from files
                below += directories
        level = below
    warnings += [f"{directory} lies over {DEPTH_MAX} levels below {root}: left out" for directory in level]


def beside(path: Path) -> list[Path]:
    """The model files in the directory of `path`, by name."""
    return _entries(path.parent, [])[0][:FILES_MAX]


def look_at(path: Path) -> ModelFile:
    """Size and header of a file, or what is wrong with it. Never raises for what is on the disk."""
    header, problem, size_bytes, modified_at = None, None, 0, 0
    try:
        status = os.stat(path)
        size_bytes, modified_at = status.st_size, int(status.st_mtime)
        header = read_header(path)
    except GgufError as error:
        problem = f"{path} can't be used: {error}"
    except OSError as error:
        problem = f"{path} can't be read: {error.strerror or error}"
    for shard in shard_paths(path)[1:]:
        try:
            size_bytes += os.stat(shard).st_size
        except OSError as error:
            problem = problem or f"a part of the model is missing: {shard} can't be read: {error.strerror}"
            break
    return ModelFile(path, header, problem, size_bytes, modified_at)


def read_header(path: Path) -> Gguf:
    """Metadata and tensor table of one file. Raises OSError or GgufError."""
    # Non-blocking, or else opening a pipe would wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return gguf.read(lambda offset, length: os.pread(descriptor, length, offset), status.st_size)
    finally:
        os.close(descriptor)


def stem(path: Path) -> str:
    """The file's name without its ending, and without the number of a shard."""
    plain = path.name[: -len(ENDING)] if path.name.lower().endswith(ENDING) else path.name
    shard = _SHARD.fullmatch(plain)
    return shard["stem"] if shard else plain


def is_further_shard(path: Path) -> bool:
    shard = _SHARD.fullmatch(path.stem)
    return shard is not None and int(shard["number"]) != 1


def shard_paths(path: Path) -> list[Path]:
    """All files of the model that begins with `path`: itself, unless its name says that it is split."""
    shard = _SHARD.fullmatch(path.stem)
    if shard is None:
        return [path]
    numbers = range(1, int(shard["count"]) + 1)
    return [
        path.with_name(f"{shard['stem']}-{number:05}-of-{shard['count']}{path.suffix}") for number in numbers
    ]


def _is_new(directory: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether this is the first visit, by whatever links it is reached."""
    try:
        status = os.stat(directory)
    except OSError:
        return False
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _entries(directory: Path, warnings: list[str]) -> tuple[list[Path], list[Path]]:
    """The model files and the directories in `directory`, by name, without hidden ones."""
    files: list[Path] = []
    directories: list[Path] = []
    try:
        names = sorted(os.listdir(directory), key=lambda name: name.removesuffix(ENDING))
    except OSError as error:
        warnings.append(f"{directory} can't be looked into: {error.strerror}")
        return files, directories
    for name in names:
        if name.startswith("."):
            continue
        path = directory / name
        if path.is_dir():
            directories.append(path)
        elif name.lower().endswith(ENDING):
            if path.is_file():
                files.append(path)
            else:
                warnings.append(f"{path} is no file (a broken link, perhaps): left out")
    return files, directories
