"""Lines of a file in UTF-8, UTF-16 or UTF-32, with their numbers; those that cannot be read are refused."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import MAX_ROW, RAW_LENGTH, Refused


def lines_of(path: Path, file: BinaryIO) -> Iterator[tuple[int, str] | Refused]:
    """The lines of a file that is open, each with its number or refused; `path` is named in what is refused."""
    wide = _wide_encoding(file)
    return _lines(path, file) if wide is None else _wide_lines(path, file, wide)


def start_of(file: BinaryIO, size: int) -> bytes:
    """The first bytes of a file; none of one that is damaged there, which reading its lines says."""
    file.seek(0)
    try:
        return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""
    finally:
        file.seek(0)


def _wide_encoding(file: BinaryIO) -> str | None:
    """UTF-16 or UTF-32 where the file begins so, with a mark or without: texts here begin with a character of ASCII."""
    start = start_of(file, 4)
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if len(start) == 4 and start.count(0) == 2 and start[0] != start[1]:
        return "utf-16-le" if start[1] == 0 else "utf-16-be"
    return None


def _wide_lines(path: Path, file: BinaryIO, encoding: str) -> Iterator[tuple[int, str] | Refused]:
    """Lines of a file in UTF-16 or UTF-32, with their numbers."""
    text = io.TextIOWrapper(file, encoding, newline="\n")
    number = 0
    while True:
        number += 1
        try:
            line = text.readline(MAX_ROW + 1)
            too_long = len(line) > MAX_ROW and not line.endswith("\n")
            start = line[:RAW_LENGTH]
            while too_long and line and not line.endswith("\n"):
                line = text.readline(MAX_ROW)
        except (UnicodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = f"the file is cut off or no {encoding.upper()} from here on ({error}); fetch or convert it again"
            yield Refused(str(path), number, reason, "")
            return
        if too_long:
            yield Refused(str(path), number, f"the line is longer than {MAX_ROW >> 20} MiB", start)
            continue
        if not line:
            text.detach()
            return
        yield number, line


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str] | Refused]:
    """Decoded lines with their numbers; one that is not UTF-8 is refused, and a torn end of a gzip file too."""
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_ROW + 1)
            too_long = len(line) > MAX_ROW and not line.endswith(b"\n")
            if too_long:
                start = line[:RAW_LENGTH].decode("utf-8", "replace")
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = f"the gzip file is cut off or damaged from here on ({error}); fetch it again"
            yield Refused(str(path), number, reason, "")
            return
        if too_long:
            yield Refused(str(path), number, f"the line is longer than {MAX_ROW >> 20} MiB", start)
            continue
        if not line:
            return
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if b"\n" not in line and line.rstrip(b"\r").count(b"\r") > 1:
                raise UserError(f"the lines of {path} end in CR alone; convert it: tr '\\r' '\\n' < {path} > NEW")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = (
                f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}; convert the file, for example "
                "iconv -f WINDOWS-1252 -t UTF-8"
            )
            yield Refused(str(path), number, reason, line.decode("utf-8", "backslashreplace").strip()[:RAW_LENGTH])
            continue
        yield number, text
