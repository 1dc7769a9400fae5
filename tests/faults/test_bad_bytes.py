"""F-08, F-09: a source disk with bad sectors, and bytes that change on the way to storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bench import Bench, fill
from tests.faults.injection import compiled
from tests.faults.invariant import Task, check

# Reading a file called bad-sector fails; of what is written to staging as a file of FAULT_SIZE bytes, the first
# FAULT_TIMES copies have one bit of their middle flipped.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int named(int fd, const char *part) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

#define READING(name, type, parameters, arguments)                     \
    type name parameters {                                             \
        static type (*next) parameters;                                \
        if (!next) next = dlsym(RTLD_NEXT, #name);                     \
        if (named(fd, "/bad-sector")) { errno = EIO; return -1; }      \
        return next arguments;                                         \
    }
READING(read, ssize_t, (int fd, void *buffer, size_t size), (fd, buffer, size))
READING(readv, ssize_t, (int fd, const struct iovec *vector, int count), (fd, vector, count))
READING(pread64, ssize_t, (int fd, void *buffer, size_t size, off64_t offset), (fd, buffer, size, offset))
READING(preadv64v2, ssize_t, (int fd, const struct iovec *v, int n, off64_t o, int f), (fd, v, n, o, f))

ssize_t write(int fd, const void *buffer, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    static int done;
    if (!next) next = dlsym(RTLD_NEXT, "write");
    const char *wanted = getenv("FAULT_SIZE"), *times = getenv("FAULT_TIMES");
    if (wanted && times && size == strtoul(wanted, NULL, 10) && named(fd, "/.staging/")
        && __atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST) < atoi(times)) {
        char *copy = malloc(size);
        memcpy(copy, buffer, size);
        copy[size / 2] ^= 0x10;
        ssize_t written = next(fd, copy, size);
        free(copy);
        return written;
    }
    return next(fd, buffer, size);
}
"""
SIZE = 77_777


@pytest.fixture(scope="module")
def shim(run_directory: Path) -> Path:
    return compiled(SHIM, run_directory, "badbytes")


@pytest.fixture
def faulty(bench: Bench, shim: Path) -> Iterator[Bench]:
    """The bench with a way to start acquisition under the shim; afterwards it is started without."""
    yield bench
    bench.acquisition.stop()


def restart(bench: Bench, shim: Path, **environment: str) -> None:
    bench.acquisition.stop()
    bench.acquisition.start(environment={"LD_PRELOAD": str(shim), **environment})


def test_f08_a_bad_sector_fails_one_file(faulty: Bench, shim: Path, source: Path) -> None:
    restart(faulty, shim)
    experiment = faulty.experiment()
    fill(source, 20)
    (source / "bad-sector").write_bytes(b"lost" * 1000)
    upload = faulty.begin("upload", experiment, source)
    record = faulty.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"], record["nProcessingErrors"]) == ("failed", 20, 1), record
    assert "Input/output error" in record["errorMessage"] and "bad-sector" in record["errorMessage"]
    found = check(faulty, experiment, source, task=Task("upload", upload["id"]), refused=[b"bad-sector"])
    assert "EIO" in found.rows[b"bad-sector"]["lastError"]


def test_f09_one_damaged_copy_is_made_good(faulty: Bench, shim: Path, source: Path) -> None:
    restart(faulty, shim, FAULT_SIZE=str(SIZE), FAULT_TIMES="1")
    experiment = faulty.experiment()
    fill(source, 5)
    (source / "unlucky").write_bytes(os.urandom(SIZE))
    upload = faulty.begin("upload", experiment, source)
    record = faulty.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 6), record
    found = check(faulty, experiment, source, task=Task("upload", upload["id"]))
    assert found.rows[b"unlucky"]["attempts"] == 1


def test_f09_copies_that_are_always_damaged_fail_with_both_digests(faulty: Bench, shim: Path, source: Path) -> None:
    import xxhash

    restart(faulty, shim, FAULT_SIZE=str(SIZE), FAULT_TIMES="1000")
    experiment = faulty.experiment()
    fill(source, 5)
    content = os.urandom(SIZE)
    (source / "unlucky").write_bytes(content)
    upload = faulty.begin("upload", experiment, source)
    record = faulty.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"], record["nProcessingErrors"]) == ("failed", 5, 1), record
    found = check(faulty, experiment, source, task=Task("upload", upload["id"]), refused=[b"unlucky"])
    damaged = bytearray(content)
    damaged[SIZE // 2] ^= 0x10
    told = found.rows[b"unlucky"]["lastError"]
    assert xxhash.xxh3_128_hexdigest(content) in told
    assert xxhash.xxh3_128_hexdigest(bytes(damaged)) in told
    assert found.rows[b"unlucky"]["attempts"] >= 2
