"""What the demo counts: the words, lines and bytes of the regular files below a directory."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass

__all__ = ["Tally", "count", "list_files"]

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted. A file that could not be read to its end counts as skipped, and as nothing else."""

    files: int = 0
    words: int = 0
    lines: int = 0
    size_bytes: int = 0
    skipped: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.files:,} files, {self.words:,} words, {self.lines:,} lines, {self.size_bytes:,} bytes"
            f" and {self.skipped:,} skipped"
        )

    def packed(self) -> bytes:
        """The tally as a value of the store."""
        return " ".join(map(str, astuple(self))).encode()

    @classmethod
    def unpacked(cls, value: bytes) -> Tally:
        """The tally that `packed` made the value of."""
        return cls(*map(int, value.split()))


def list_files(root: bytes, leave_out: Collection[bytes] = ()) -> tuple[list[bytes], int]:
    """The regular files below a directory, sorted, relative to it; and how many directories could not be read.

    Symbolic links are not followed, so a loop of them is no loop here. Directories named in `leave_out` are left out.
    """
    files: list[bytes] = []
    unreadable = 0
    todo = [b""]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(root + b"/" + folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        files.append(folder + entry.name)
                    elif entry.is_dir(follow_symlinks=False) and entry.name not in leave_out:
                        todo.append(folder + entry.name + b"/")
        except OSError:
            unreadable += 1
    return sorted(files), unreadable


def count(root: bytes, files: Iterable[bytes]) -> Tally:
    """Counts all of the files, one after the other: what a single process does."""
    return sum((_count_file(root + b"/" + path) for path in files), Tally())


def _count_file(path: bytes) -> Tally:
    """Words are what whitespace separates, lines are newlines, both of the bytes: no encoding is assumed."""
    words = lines = size_bytes = 0
    in_word = False
    try:
        # NONBLOCK: what was listed as a file may be a pipe by now
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while piece := os.read(fd, _READ_BYTES):
                words += len(piece.split()) - (in_word and not piece[:1].isspace())  # a word cut in two is one
                lines += piece.count(b"\n")
                size_bytes += len(piece)
                in_word = not piece[-1:].isspace()
        finally:
            os.close(fd)
    except OSError:
        return Tally(skipped=1)
    return Tally(1, words, lines, size_bytes)
