"""Small task sets, archives and pickles for the tests of the data, and a web server to fetch them from."""

import io
import pickle
import struct
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from tasks.taskset import Split, Task, TaskSet


def examples(n, n_pixels=12, n_classes=3, dtype=np.uint8, seed=0):
    """(images (n, n_pixels), labels (n,)), of every class."""
    images = np.random.default_rng([seed, n]).integers(0, 256, (n, n_pixels), dtype=np.uint8)
    images = images if dtype == np.uint8 else images / np.float32(255)
    return images, np.arange(n, dtype=np.int64) % n_classes


def mapped_tasks(n_tasks=3, dtype=np.uint8):
    """A TaskSet of maps over shared images, with pixels from outside."""
    train, test, random = examples(30, dtype=dtype), examples(10, dtype=dtype), np.random.default_rng(1)
    maps = [random.integers(-1, 12, 8).astype(np.int32) for _ in range(n_tasks)]
    return TaskSet([Task(float(t), Split(*train, m), Split(*test, m)) for t, m in enumerate(maps)], "toy", "invented")


def own_tasks(n_tasks=3, dtypes=(np.uint8,), n_pixels=12):
    """A TaskSet whose tasks have images of their own, without maps, of one type after another."""
    tasks = []
    for t in range(n_tasks):
        dtype = dtypes[t % len(dtypes)]
        halves = [Split(*examples(n + t, n_pixels, dtype=dtype, seed=t)) for n in (20, 8)]
        tasks.append(Task(f"task {t}", *halves))
    return TaskSet(tasks, "toy", "invented")


def equal(one, other):
    """Whether two TaskSets are the same to a learner."""
    if len(one.tasks) != len(other.tasks) or one.n_outputs != other.n_outputs:
        return False
    if (one.image_shape, one.class_ranges) != (other.image_shape, other.class_ranges):
        return False
    pairs = [
        pair for a, b in zip(one.tasks, other.tasks, strict=True) for pair in ((a.train, b.train), (a.test, b.test))
    ]
    same = all(a.inputs().equal(b.inputs()) and np.array_equal(a.labels, b.labels) for a, b in pairs)
    return same and [task.descriptor for task in one.tasks] == [task.descriptor for task in other.tasks]


class Evil:
    """Pickles to a call that makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def targz(*members):
    """The bytes of a .tar.gz. members: (name, content) of files, or TarInfo of anything else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special_member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def python2_pickle(images, labels, key=b"fine_labels"):
    """CIFAR-100's files, byte for byte as Python 2 with an old numpy pickled them: strings are bytes."""

    def text(value):
        return pickle.SHORT_BINSTRING + bytes([len(value)]) + value

    def integer(value):
        return pickle.BININT + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + pickle.TUPLE3 + pickle.REDUCE
    dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + pickle.TUPLE1 + text(b"b")
    array += pickle.TUPLE3 + pickle.REDUCE
    array += b"(" + integer(1) + integer(images.shape[0]) + integer(images.shape[1]) + pickle.TUPLE2 + dtype
    array += pickle.NEWFALSE + pickle.BINSTRING + struct.pack("<i", images.size) + images.tobytes() + b"tb"
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    return pickle.PROTO + b"\2}(" + text(b"data") + array + text(key) + numbers + b"u."


class Site:
    """What the server has, how it misbehaves, and what it was asked.

    content, etag   of the only file, at any path
    breaks          after how many bytes to hang up, one for each of the next answers; None: not
    status          to answer instead, where not None
    ranges          whether it answers requests for a part
    length          the Content-Length it claims; None: the true one; "": none
    requests        the headers that came
    """

    def __init__(self, content):
        self.content, self.etag, self.breaks, self.status = content, '"one"', [], None
        self.ranges, self.length, self.requests = True, None, []


@contextmanager
def serving(site):
    """The address of a server of the site."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            site.requests.append(self.headers)
            self.close_connection = True
            if site.status is not None:
                self.send_error(site.status)
                return
            total, start = len(site.content), 0
            wanted = self.headers.get("Range")
            if wanted and site.ranges and self.headers.get("If-Range", site.etag) == site.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if site.etag:
                self.send_header("ETag", site.etag)
            length = total - start if site.length is None else site.length
            if length != "":
                self.send_header("Content-Length", str(length))
            self.end_headers()
            stop = site.breaks.pop(0) if site.breaks else None
            self.wfile.write(site.content[start:][:stop])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
