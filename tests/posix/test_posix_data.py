"""read, write and what is between: offsets, O_APPEND, holes, mappings, copying in the kernel, durability calls."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random

import pytest

from tests.posix.places import (
    Place,
    connect_socket,
    make,
    mode_of,
    open_close,
    opened,
    read_file,
    stamps,
    write_file,
)
from tests.support.users import ALICE, BOB, as_user, errno_of_call, raises_errno

MIB = 1 << 20
TIB = 1 << 40


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 131_072, MIB, MIB + 1, 3 * MIB + 17])
def test_what_is_written_is_read(place: Place, size: int) -> None:
    data = random.Random(size).randbytes(size)
    path = place.path()
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        written = 0
        while written < size:
            written += os.write(fd, data[written:])
        assert os.pread(fd, size + 10, 0) == data
    assert os.lstat(path).st_size == size
    assert read_file(path) == data


@pytest.mark.parametrize("chunk", [1, 100, 4096, 5000])
def test_small_writes_add_up(place: Place, chunk: int) -> None:
    data = random.Random(chunk).randbytes(chunk * 60)
    path = place.path()
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        for start in range(0, len(data), chunk):
            assert os.write(fd, data[start : start + chunk]) == chunk
    assert read_file(path) == data


def test_random_writes_against_a_model(place: Place) -> None:
    generator = random.Random(7)
    model = bytearray()
    path = place.path()
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        for _ in range(120):
            match generator.randrange(4):
                case 0 | 1:
                    offset, data = (
                        generator.randrange(200_000),
                        generator.randbytes(generator.randrange(1, 9000)),
                    )
                    os.pwrite(fd, data, offset)
                    model.extend(bytes(max(0, offset + len(data) - len(model))))
                    model[offset : offset + len(data)] = data
                case 2:
                    size = generator.randrange(200_000)
                    os.ftruncate(fd, size)
                    del model[size:]
                    model.extend(bytes(size - len(model)))
                case _:
                    offset, length = generator.randrange(200_000), generator.randrange(30_000)
                    assert os.pread(fd, length, offset) == model[offset : offset + length]
    assert read_file(path) == model


def test_writing_stamps_mtime_and_ctime(place: Place) -> None:
    path = place.file(data=b"0123456789")
    with opened(path, os.O_WRONLY) as fd:
        with stamps(path, "mtime", "ctime"):
            os.write(fd, b"x")
        with stamps(path, "mtime", "ctime"):
            os.pwrite(fd, b"y", 5)
    with stamps(path, kept=("mtime", "ctime")):
        read_file(path)
        open_close(path, os.O_RDWR)


def test_writing_does_not_stamp_the_parent(place: Place) -> None:
    parent = place.dir()
    path = make("file", f"{parent}/f")
    with stamps(parent, kept=("mtime", "ctime")):
        write_file(path, b"data")


def test_pwrite_beyond_the_end_leaves_zeros(place: Place) -> None:
    path = place.file(data=b"head")
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"tail", 10_000)
    assert read_file(path) == b"head" + bytes(9_996) + b"tail"


def test_reading_at_and_beyond_the_end(place: Place) -> None:
    with opened(place.file(data=b"0123456789")) as fd:
        assert os.pread(fd, 100, 8) == b"89"
        assert os.pread(fd, 100, 10) == b""
        assert os.pread(fd, 100, TIB) == b""
        with raises_errno(errno.EINVAL):
            os.pread(fd, 1, -1)


def test_vectors(place: Place) -> None:
    with opened(place.path(), os.O_CREAT | os.O_RDWR) as fd:
        assert os.writev(fd, [b"one", b"", b"two", b"three"]) == 11
        assert os.pwritev(fd, [b"X", b"Y"], 3) == 2
        buffers = [bytearray(4), bytearray(20)]
        assert os.preadv(fd, buffers, 0) == 11
        assert bytes(buffers[0]) + bytes(buffers[1][:7]) == b"oneXYothree"


def test_seeking(place: Place) -> None:
    with opened(place.file(data=b"0123456789"), os.O_RDWR) as fd:
        assert os.lseek(fd, -3, os.SEEK_END) == 7
        assert os.read(fd, 10) == b"789"
        assert os.lseek(fd, 100, os.SEEK_SET) == 100
        assert os.read(fd, 10) == b""
        assert os.fstat(fd).st_size == 10
        assert os.lseek(fd, -95, os.SEEK_CUR) == 5
        with raises_errno(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)


def test_holes_read_as_zeros_and_take_no_room(place: Place) -> None:
    path = place.path()
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 64 * MIB)
        assert os.pread(fd, 100, 32 * MIB) == bytes(100)
    status = os.lstat(path)
    assert status.st_size == 64 * MIB + 3
    assert status.st_blocks * 512 < MIB


@pytest.mark.parametrize("offset", [2**31 - 1, 2**31, 2**32, TIB])
def test_large_offsets(place: Place, offset: int) -> None:
    path = place.path()
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        assert os.pwrite(fd, b"far away", offset) == 8
        assert os.pread(fd, 100, offset) == b"far away"
        assert os.pread(fd, 4, offset - 4) == bytes(4)
        assert os.lseek(fd, 0, os.SEEK_END) == offset + 8
    assert os.lstat(path).st_size == offset + 8
    assert os.lstat(path).st_blocks * 512 < MIB


def test_seek_hole_and_data_are_sound(place: Place) -> None:
    """A file system may call everything data; what it calls a hole must read as zeros."""
    with opened(place.path(), os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * 4096, 4 * MIB)
        first = os.lseek(fd, 0, os.SEEK_DATA)
        assert first in {0, 4 * MIB}
        assert os.pread(fd, first, 0).count(0) == first
        assert os.lseek(fd, 4 * MIB, os.SEEK_HOLE) == 4 * MIB + 4096
        with raises_errno(errno.ENXIO):
            os.lseek(fd, 5 * MIB, os.SEEK_DATA)


def test_blocks_grow_with_data_and_shrink_with_truncate(place: Place) -> None:
    path = place.path()
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"x" * MIB)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks * 512 >= MIB
        os.ftruncate(fd, 0)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks * 512 <= 16_384


def test_o_append_always_writes_at_the_end(place: Place) -> None:
    path = place.file(data=b"start")
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd, opened(path, os.O_WRONLY) as other:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"+1")
        os.pwrite(other, b"S", 0)
        os.ftruncate(other, 10)
        os.write(fd, b"+2")
    assert read_file(path) == b"Start+1\0\0\0+2"


def test_o_append_from_several_processes_loses_nothing(place: Place) -> None:
    """Logs of CRIU and of checkpoint scripts: whole lines, in any order."""
    path = place.file(mode=0o666)
    children = []
    for writer in range(4):
        child = os.fork()
        if child == 0:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND)
                for number in range(50):
                    os.write(fd, b"%d:%03d\n" % (writer, number))
                os.close(fd)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    lines = read_file(path).splitlines()
    assert len(lines) == 200
    assert set(lines) == {b"%d:%03d" % (writer, number) for writer in range(4) for number in range(50)}
    for writer in range(4):
        own = [line for line in lines if line.startswith(b"%d:" % writer)]
        assert own == sorted(own)


def test_descriptors_are_shared_with_children(place: Place) -> None:
    """An inherited descriptor has one offset: what a shell's redirection relies on."""
    path = place.path()
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"parent ")
        as_user(ALICE, os.write, fd, b"child ")
        os.write(fd, b"parent")
    assert read_file(path) == b"parent child parent"


@pytest.mark.parametrize("size", [1, 4096, 3 * 4096 + 5])
def test_private_mapping(place: Place, size: int) -> None:
    path = place.file(data=b"m" * size)
    with (
        opened(path, os.O_RDONLY) as fd,
        mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
    ):
        assert view[:] == b"m" * size
        view[0:1] = b"X"
        assert os.pread(fd, 1, 0) == b"m"
    assert read_file(path) == b"m" * size


def test_shared_mapping_for_reading(place: Place) -> None:
    path = place.file(data=b"m" * 10_000)
    with opened(path) as fd, mmap.mmap(fd, 10_000, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        assert hashlib.sha256(view).digest() == hashlib.sha256(b"m" * 10_000).digest()


def test_shared_mapping_for_writing(place: Place) -> None:
    path = place.file(data=bytes(10_000))
    with opened(path, os.O_RDWR) as fd:
        with mmap.mmap(fd, 10_000) as view:
            view[5_000:5_004] = b"here"
            view.flush()
            assert os.pread(fd, 4, 5_000) == b"here"
            view[9_999:] = b"!"
        os.fsync(fd)
    assert read_file(path) == bytes(5_000) + b"here" + bytes(4_995) + b"!"


def test_a_shared_mapping_outlives_its_descriptor(place: Place) -> None:
    path = place.file(data=bytes(4096))
    with opened(path, os.O_RDWR) as fd:
        view = mmap.mmap(fd, 4096)
    with view:
        view[:5] = b"later"
        view.flush()
    assert read_file(path)[:5] == b"later"


def test_a_mapping_shows_what_others_write(place: Place) -> None:
    path = place.file(data=b"before", mode=0o666)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 6) as view:
        assert view[:] == b"before"
        os.pwrite(fd, b"after.", 0)
        assert view[:] == b"after."


def test_a_shared_writable_mapping_needs_both_rights(place: Place) -> None:
    path = place.file(data=b"data")
    for flags in (os.O_RDONLY, os.O_WRONLY):
        with opened(path, flags) as fd, raises_errno(errno.EACCES):
            mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def test_copy_file_range(place: Place) -> None:
    source, target = place.file(data=b"0123456789" * 1000), place.file()
    with opened(source) as reader, opened(target, os.O_RDWR) as writer:
        copied = os.copy_file_range(reader, writer, 5_000, 10, 3)
        assert copied == 5_000
        assert os.pread(writer, 10_000, 3) == (b"0123456789" * 501)[:5_000]
    assert os.lstat(target).st_size == 5_003


def test_copy_file_range_from_elsewhere(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """cp tries it first, also from another file system, and falls back to reading on EXDEV."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "f"
    elsewhere.write_bytes(b"data" * 5000)
    target = place.file()
    with opened(str(elsewhere)) as reader, opened(target, os.O_WRONLY) as writer:
        number = errno_of_call(os.copy_file_range, reader, writer, 20_000)
        assert number in {0, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL}
    assert read_file(target) == (b"" if number else b"data" * 5000)


def test_sendfile(place: Place) -> None:
    source, target = place.file(data=b"0123456789" * 1000), place.file()
    with opened(source) as reader, opened(target, os.O_WRONLY) as writer:
        assert os.sendfile(writer, reader, 0, 10_000) == 10_000
    assert read_file(target) == b"0123456789" * 1000


def test_splice_through_a_pipe(place: Place) -> None:
    """How CRIU writes its page images."""
    target = place.file()
    reading, writing = os.pipe()
    try:
        with opened(target, os.O_RDWR) as fd:
            for start in range(0, 200_000, 50_000):
                os.write(writing, b"p" * 50_000)
                moved = 0
                while moved < 50_000:
                    moved += os.splice(reading, fd, 50_000 - moved, offset_dst=start + moved)
            assert os.fstat(fd).st_size == 200_000
    finally:
        os.close(reading)
        os.close(writing)
    assert read_file(target) == b"p" * 200_000


@pytest.mark.parametrize("act", [os.fsync, os.fdatasync])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_fsync_of_files(place: Place, act: object, flags: int) -> None:
    path = place.file(data=b"data")
    with opened(path, flags) as fd:
        if flags != os.O_RDONLY:
            os.write(fd, b"more")
        assert callable(act)
        act(fd)


@pytest.mark.parametrize("where", ["top", "inside"])
def test_fsync_of_directories(place: Place, where: str) -> None:
    path = place.top if where == "top" else place.dir()
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
        os.fdatasync(fd)


def test_fsync_after_a_rename(room: str) -> None:
    """What the recorded checkpoint script does: rename, fsync of the file, fsync of the directory, close."""
    with opened(f"{room}/.x.tmp", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o400) as fd:
        os.write(fd, b"image")
        os.rename(f"{room}/.x.tmp", f"{room}/x")
        os.fsync(fd)
        with opened(room, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)
    assert read_file(f"{room}/x") == b"image"
    assert mode_of(f"{room}/x") == 0o400


def test_a_fifo_connects_processes(place: Place) -> None:
    path = place.make("fifo", mode=0o666)
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as reader:
        as_user(ALICE, write_file, path, b"from alice")
        os.set_blocking(reader, True)
        assert os.read(reader, 100) == b"from alice"
        assert os.read(reader, 100) == b""


def test_a_socket_connects_processes(place: Place) -> None:
    import socket

    path = place.path()
    parent, name = os.path.split(path)
    with (
        opened(parent, os.O_PATH | os.O_DIRECTORY) as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server,
    ):
        server.bind(f"/proc/self/fd/{directory}/{name}")
        os.chmod(path, 0o666)
        server.listen()

        def send() -> None:
            with connect_socket(path) as client:
                client.sendall(b"from bob")

        as_user(BOB, send)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b"from bob"
    assert errno_of_call(connect_socket, path) == errno.ECONNREFUSED


def test_a_socket_needs_write_permission(place: Place) -> None:
    path = place.make("socket", mode=0o600, uid=ALICE)

    def connect() -> int:
        return errno_of_call(connect_socket, path)

    assert as_user(BOB, connect) == errno.EACCES
    assert as_user(ALICE, connect) == errno.ECONNREFUSED
