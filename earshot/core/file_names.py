"""File names: which are audio, and names as text that is valid in tables, digests and terminals."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterable
from functools import cache

# Suffixes of libsndfile's formats besides their own names (.wav, .caf, .w64, ... are those).
ALIASES = {
    "WAV": "wave bwf",
    "NIST": "sph nist",
    "AIFF": "aif aifc aff",
    "AU": "snd",
    "OGG": "oga opus",
    "MP3": "mp2 mpga",
    "SVX": "8svx 16svx",
    "IRCAM": "sf",
}
# Formats whose suffix means something else in practice: .raw can be anything, as no header tells rate and
# samples; .mat holds tables of numbers, .htk features; an .sd2 keeps its header in a fork of a Mac's disk.
NOT_BY_SUFFIX = {"RAW", "MAT4", "MAT5", "HTK", "SD2"}
# Left out on purpose: .ts is also TypeScript, .rm and .vob are films.
ONLY_FFMPEG = frozenset(
    "m4a m4b m4r mp4 aac adts wma asf webm weba mka mkv mov 3gp 3gpp 3g2 amr awb ac3 eac3 dts ape wv tta tak "
    "mpc spx ra avi ogv alac dsf dff".split()
)
# not listed among unused files: documents, tables, checksums, leftovers
DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|authors|attribution|makefile)\b.*|thumbs\.db|"
    r"desktop\.ini|.*(md5|sha1|sha256|sha512)(sums?)?(\.txt)?|"
    r".*\.(md|rst|txt|pdf|docx?|html?|csv|tsv|xlsx?|ods|json|jsonl|ya?ml|toml|xml|parquet|feather|arrow|"
    r"ipynb|py|sh|log|lock|ini|cfg)",
    re.IGNORECASE,
)


# Western Europe's first: of Windows, Unix and DOS. Then Cyrillic, Japanese, Chinese and Korean ones.
CODE_PAGES = ("cp1252", "latin-1", "cp437", "cp1251", "cp866", "cp932", "gb18030", "big5", "cp949")


def to_text(name: str) -> str:
    r"""A path or name as text: bytes that are not UTF-8 become visible escapes such as `caf\xe9.wav`.

    Python keeps such bytes as lone surrogates, which cannot be written as UTF-8. Use this wherever a file is
    named as text, and the path itself only to open the file.
    """
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    failed = to_text(error.object[error.start : error.end])
    return failed.encode("ascii", "backslashreplace").decode(), error.end


VISIBLE = "visible"  # error handler for terminals: escape as `to_text` does
codecs.register_error(VISIBLE, _escape_unencodable)


def list_readings(name: str) -> list[str]:
    """A path or name as text, and as a csv may have it: read by the code pages that were common before, where
    its bytes are no UTF-8, or where a zip without the UTF-8 flag was read by the code page of DOS."""
    text = to_text(name)
    if name.isascii():
        return [text]
    try:
        data = name.encode("utf-8", "surrogateescape") if text != name else name.encode("cp437")
    except UnicodeEncodeError:
        return [text]
    spellings = [text]
    for encoding in CODE_PAGES:
        with contextlib.suppress(UnicodeDecodeError):
            spellings.append(data.decode(encoding))
    return list(dict.fromkeys(spellings))


@cache
def list_decodable() -> frozenset[str]:
    """The suffixes, without dot, of what soundfile decodes."""
    try:
        import soundfile  # not at the top: --help needs no libsndfile

        formats = set(soundfile.available_formats())
    except (ImportError, OSError):  # the doctor reports that; the list must not depend on it
        formats = {"WAV", "FLAC", "OGG", "MP3", "AIFF", "AU"}
    named = {name.lower() for name in formats - NOT_BY_SUFFIX}
    return frozenset(named.union(*(aliases.split() for name, aliases in ALIASES.items() if name in formats)))


def get_suffix(name: str) -> str:
    """The suffix in lower case without its dot, "" where there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_audio(name: str) -> bool:
    """Whether a file name ends like audio that soundfile or ffmpeg reads."""
    suffix = get_suffix(name)
    return suffix in list_decodable() or suffix in ONLY_FFMPEG


def list_audio_suffixes() -> list[str]:
    """All suffixes of audio with their dot, sorted."""
    return sorted(f".{suffix}" for suffix in list_decodable() | ONLY_FFMPEG)


def is_document(name: str) -> bool:
    """Whether a file is a document, table or leftover, not a possible clip."""
    return name.startswith(".") or DOCUMENTS.fullmatch(name) is not None


def format_ids(names: Iterable[str], most: int = 3) -> str:
    """Names for a message: the first few in order, and the number of others."""
    names = sorted(names)
    shown = [name if name.isprintable() else repr(name) for name in names[:most]]
    more = len(names) - len(shown)
    if not more:
        return ", ".join(shown)
    return f"{', '.join(shown)} and {more} more"
