"""Fetching archives and taking files out of them: resumed, verified, and safe whatever they hold."""

import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import time
import zlib
from pathlib import PurePosixPath

import requests
import urllib3
from tqdm import tqdm

from disk.resources import check_room
from errors import UserError

BLOCK_BYTES = 1 << 18
HEADER_BYTES, MOST_MEMBERS = 1 << 20, 1000  # of one file's headers in an archive, and of files there
ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS = 4, 2, 60


class Failed(Exception):
    """What could not be fetched or unpacked, and why."""


class Interrupted(Failed):
    """The connection broke, or the server is busy: another attempt may do."""


def download(url, path, most_bytes, room):
    """Fetches url to path, going on with what an earlier call has left. Raises Failed, and UserError on a full disk.

    most_bytes   what the file can have
    room         bytes that must be free on the disk besides

    Until it is complete it is called <path>.part, and <path>.about.part tells which version it is a part of: a part of
    another version is dropped. A broken connection is taken up again, a few times.
    """
    part, about = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.about.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(url, part, about, most_bytes, room)
            break
        except Interrupted as error:
            if attempt == ATTEMPTS:
                kept = f"; {part} is kept, the same command goes on from there" if part.exists() else ""
                raise Failed(f"{url}: {error}{kept}") from error
            print(f"{error}; trying again", file=sys.stderr)
            time.sleep(PAUSE_SECONDS * attempt)
    os.replace(part, path)
    about.unlink()


def _fetch(url, part, about, most_bytes, room):
    """One request; returns when all of the file is in the part."""
    have, known = _begun(url, part, about)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known["validator"]:
            headers["If-Range"] = known["validator"]
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            have, total = _agree(response, have, known, part)
            if have and have == total:
                return
            if total is not None and total > most_bytes:
                raise Failed(f"{url} has {total:,} bytes, more than the {most_bytes:,} that it can have")
            check_room(part.parent, (most_bytes if total is None else total) - have + room, f"{url}, unpacked,")
            about.write_text(json.dumps({"url": url, "validator": _validator(response), "total": total}))
            _receive(response, part, have, total, most_bytes)
    except (
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
    ) as error:
        raise UserError(f"{url} cannot be fetched ({error}); say --url https://…") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Interrupted(f"the connection failed ({type(error).__name__})") from error


def _begun(url, part, about):
    """(bytes, what is known of the whole file) of what an earlier attempt has left."""
    try:
        known = json.loads(about.read_text())
        if known["url"] == url and known.keys() == {"url", "validator", "total"}:
            return part.stat().st_size, known
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # there is none, or none of ours
        pass
    return 0, None


def _validator(response):
    """What tells this version of the file from others, for If-Range; None where the server does not say."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if tag.startswith("W/") else tag


def _agree(response, have, known, part):
    """(bytes of the part to keep, bytes of the whole file or None), by the answer to a request for what is missing."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    if have and response.status_code in (206, 416):
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        total = int(span[2]) if span else None
        fits = span and int(span[1] or total) == have  # 416 has no start: the part must be complete
        if fits and known["total"] in (None, total):
            return have, total
        part.unlink()
        raise Interrupted("the server has another version than the part that is here, which is dropped")
    reason = f"the server answers {response.status_code} {response.reason}"
    if response.status_code >= 500 or response.status_code == 429:
        raise Interrupted(reason)
    raise Failed(f"{response.url}: {reason}")


def _receive(response, part, have, total, most_bytes):
    """Adds the answer's bytes to the part, of which the first `have` are kept."""
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
    try:
        with bar, open(part, "ab") as file:
            file.truncate(have)
            for block in response.raw.stream(BLOCK_BYTES, decode_content=False):
                have += len(block)
                if have > (most_bytes if total is None else total):
                    raise Failed(f"{response.url} is longer than the server says, or than it can be")
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Failed(
            f"cannot write {part} ({error.strerror}); make room: the same command goes on from there"
        ) from error
    if total is not None and have < total:
        raise Interrupted(f"the connection ended after {have:,} of {total:,} bytes")


def verify_md5(path, md5):
    """Raises Failed where the file has another MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != md5:
        raise Failed(f"{path} is damaged, or another file: its MD5 is {digest.hexdigest()}, not {md5}")


def extract(archive, wanted, most_bytes):
    """Copies files of a .tar.gz to file objects: wanted is {name without folders: file object}. Raises Failed.

    Nothing else is written. An archive that has anything but plain files and folders at relative paths, that unpacks to
    more than most_bytes, or whose checksum is wrong, is refused.
    """
    try:
        with gzip.open(archive) as unpacked:
            stream = _Metered(unpacked)
            missing = _extract(stream, dict(wanted), most_bytes)
            stream.allowed = HEADER_BYTES
            while stream.read(BLOCK_BYTES):  # to the end, where the checksum is
                pass
        if missing:
            raise Failed(f"it does not hold {' and '.join(missing)}")
    except Failed as error:
        raise Failed(f"{archive} is refused: {error}") from error
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise Failed(f"{archive} is damaged: {error}") from error


class _Metered:
    """A stream that gives `allowed` bytes at most: tarfile takes headers into memory, whatever length they claim."""

    def __init__(self, file):
        self.file, self.allowed = file, HEADER_BYTES

    def read(self, size):
        block = self.file.read(size)
        self.allowed -= len(block)
        if self.allowed < 0:
            raise Failed("it unpacks to far more than it should")
        return block


def _extract(stream, missing, left):
    """Copies the files in `missing` that are there; returns the others. left: bytes that the archive may unpack to."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for number, member in enumerate(tar):
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                raise Failed(f"the path {member.name!r} leads out of its folder")
            if member.issparse() or not (member.isreg() or member.isdir()):
                raise Failed(f"{member.name!r} is no plain file")
            left -= member.size
            if number >= MOST_MEMBERS or member.size < 0 or left < 0:
                raise Failed("it unpacks to far more than it should")
            stream.allowed = member.size + HEADER_BYTES
            if member.isreg() and path.name in missing:
                shutil.copyfileobj(tar.extractfile(member), missing.pop(path.name), BLOCK_BYTES)
    return missing
