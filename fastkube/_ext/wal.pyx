"""The write-ahead log's kernel: frames with CRC32C, the thread that writes and syncs them, and the way back from bytes to a tree.

A file is a header followed by frames. A frame is atomic: one transaction (all changes of one revision) or one control record.

    frame: u32 length of body | u32 CRC32C of body, seeded with the CRC before it | u32 CRC32C of these 8 bytes | body
    body:  u8 type | payload | u8 255
    transaction payload: u64 revision | u32 operations | per operation: u8 kind (0 put, 1 delete) | u32 key length | u32 value length | i64 lease | key | value

All integers are little-endian. The chained CRC ties each frame to those before it; the header's own CRC tells a frame that the end of the file cuts
(a torn write) from one whose length is damaged. Space is allocated ahead of the frames (a sync need not write the file's size then: two thirds of the
CPU time, half the wait), so a log ends with zeros; the last byte of a frame is never zero, which tells a frame that was cut by them from a damaged one.

`Journal` gathers frames on the event loop's side; its thread, which never holds the GIL, fills in the CRCs, writes a whole group with one
write and one fdatasync, and says so through an eventfd. A failed write of a full disk is taken back (the file is cut to where it was); any other
failure, and every failure of fdatasync, stops the journal for good: nobody knows then what is on disk.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EDQUOT, EFBIG, EINTR, ENOSPC, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy
from posix.unistd cimport ftruncate, lseek, write

from fastkube._ext.tree cimport Event, KeyValue, Tree, event_at

cdef extern from "unistd.h" nogil:
    int fdatasync(int fd)

cdef extern from "fcntl.h" nogil:
    int fallocate(int fd, int mode, int64_t offset, int64_t length)

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_cond_destroy(pthread_cond_t*)

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <string.h>

    static uint32_t crc32c_table[256];

    static uint32_t crc32c_plain(uint32_t crc, const unsigned char *p, size_t n) {
        if (!crc32c_table[1])
            for (int i = 255; i >= 0; i--) {
                uint32_t c = i;
                for (int k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
                crc32c_table[i] = c;
            }
        crc = ~crc;
        while (n--) crc = (crc >> 8) ^ crc32c_table[(crc ^ *p++) & 255];
        return ~crc;
    }

    #if defined(__x86_64__)
    __attribute__((target("sse4.2")))
    static uint32_t crc32c_sse42(uint32_t crc, const unsigned char *p, size_t n) {
        uint64_t c = (uint32_t)~crc, v;
        for (; n >= 8; n -= 8, p += 8) { memcpy(&v, p, 8); c = __builtin_ia32_crc32di(c, v); }
        uint32_t d = (uint32_t)c;
        while (n--) d = __builtin_ia32_crc32qi(d, *p++);
        return ~d;
    }
    static uint32_t crc32c_any(uint32_t crc, const void *p, size_t n) {
        return __builtin_cpu_supports("sse4.2") ? crc32c_sse42(crc, (const unsigned char *)p, n) : crc32c_plain(crc, (const unsigned char *)p, n);
    }
    #else
    static uint32_t crc32c_any(uint32_t crc, const void *p, size_t n) { return crc32c_plain(crc, (const unsigned char *)p, n); }
    #endif
    """
    uint32_t crc32c_any(uint32_t crc, const void* p, size_t n) noexcept nogil
    uint32_t crc32c_plain(uint32_t crc, const unsigned char* p, size_t n) noexcept nogil

cdef enum:
    FRAME_HEADER = 12
    OPERATION_HEADER = 17
    KEPT_BYTES_MAX = 1 << 22  # a buffer larger than this is given back after its group
    SECTOR = 512
    ALLOCATE_BYTES = 4 << 20  # how far ahead space is allocated
    TRAILER = 255

TRANSACTION = 1
FRAME_HEADER_BYTES = FRAME_HEADER

# What the thread is doing
cdef enum:
    IDLE = 0
    BUSY = 1
    DONE = 2


def crc32c(const unsigned char[::1] data, uint32_t seed=0):
    return crc32c_any(seed, &data[0], data.shape[0]) if data.shape[0] else seed


def crc32c_model(const unsigned char[::1] data, uint32_t seed=0):
    """The same a byte at a time: for machines without the instruction, and for the tests to compare with."""
    return crc32c_plain(seed, &data[0], data.shape[0]) if data.shape[0] else seed


def frame(uint8_t type, bytes payload, uint32_t crc):
    """One frame, for files written elsewhere than in a Journal -> (bytes, the CRC to go on from)."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, FRAME_HEADER + PyBytes_GET_SIZE(payload) + 2)
    lay(PyBytes_AS_STRING(out), type, payload)
    crc = seal(PyBytes_AS_STRING(out), crc)
    return out, crc


cdef void lay(char* p, uint8_t type, bytes payload) noexcept:
    """A frame without its CRCs."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(payload)
    (<uint32_t*> p)[0] = <uint32_t> (n + 2)
    (<uint8_t*> p)[FRAME_HEADER] = type
    memcpy(p + FRAME_HEADER + 1, PyBytes_AS_STRING(payload), n)
    (<uint8_t*> p)[FRAME_HEADER + 1 + n] = TRAILER


cdef uint32_t seal(char* frame, uint32_t crc) noexcept nogil:
    """Fill the CRCs of a frame in."""
    crc = crc32c_any(crc, frame + FRAME_HEADER, (<uint32_t*> frame)[0])
    (<uint32_t*> (frame + 4))[0] = crc
    (<uint32_t*> (frame + 8))[0] = crc32c_any(0, frame, 8)
    return crc


cdef class Journal:
    """Gathers frames and has them written in groups. One event loop's thread calls it; `run` is the body of the other thread."""

    cdef char* _gathered
    cdef size_t _gathered_n
    cdef size_t _gathered_cap
    cdef char* _out
    cdef size_t _out_n
    cdef size_t _out_cap
    cdef pthread_mutex_t _lock
    cdef pthread_cond_t _cond
    cdef int _state
    cdef bint _stopping
    cdef bint _sync
    cdef int _fd
    cdef int _notify_fd
    cdef readonly uint32_t crc  # where the chain stands at `offset`
    cdef char* _preface
    cdef size_t _preface_n
    cdef int64_t _allocated  # up to here the file has its blocks and its size
    cdef int64_t _recorded
    cdef readonly int64_t offset
    cdef int _error
    cdef const char* _error_call
    cdef bint _fatal
    # Faults for tests: the how-many-th call from now on fails with which errno, and how much a failing write still writes.
    cdef int _fail_write
    cdef int _fail_sync
    cdef int _fail_errno
    cdef int64_t _fail_partial

    def __cinit__(self, int notify_fd, bint sync=True):
        pthread_mutex_init(&self._lock, NULL)
        pthread_cond_init(&self._cond, NULL)
        self._notify_fd = notify_fd
        self._sync = sync
        self._fd = -1

    def __dealloc__(self):
        free(self._gathered)
        free(self._out)
        free(self._preface)
        pthread_mutex_destroy(&self._lock)
        pthread_cond_destroy(&self._cond)

    def open(self, int fd, int64_t offset, uint32_t crc, uint8_t preface_type=0, bytes preface=b""):
        """Go on in this file, positioned at `offset`, where the CRC chain stands at `crc`; a `preface` goes before the next group. Only while idle."""
        self._fd = fd
        self.offset = offset
        self._allocated = offset
        self.crc = crc
        free(self._preface)
        self._preface = NULL
        self._preface_n = 0
        if preface_type:
            self._preface_n = FRAME_HEADER + PyBytes_GET_SIZE(preface) + 2
            self._preface = <char*> malloc(self._preface_n)
            if self._preface == NULL:
                raise MemoryError()
            lay(self._preface, preface_type, preface)

    def fail(self, str call, int after, int error, int64_t partial=0):
        """Make the `after`-th next "write" or "fdatasync" fail with `error` (tests only)."""
        if call == "write":
            self._fail_write = after
        else:
            self._fail_sync = after
        self._fail_errno = error
        self._fail_partial = partial

    # Gathering

    cdef char* _reserve(self, size_t n) except NULL:
        cdef size_t cap
        if self._gathered_n + n > self._gathered_cap:
            cap = max(2 * self._gathered_cap, self._gathered_n + n, 1 << 16)
            self._gathered = <char*> realloc(self._gathered, cap)
            if self._gathered == NULL:
                self._gathered_cap = 0
                raise MemoryError()
            self._gathered_cap = cap
        return self._gathered + self._gathered_n

    def start_at(self, int64_t position):
        """The tree's log position from which `record` has something to do."""
        self._recorded = position

    def record(self, Tree tree):
        """Gather what the tree's log got since the last call, all of it one transaction, as a frame; returns the bytes gathered so far."""
        cdef size_t n = 1 + 12 + 1
        cdef int64_t i
        cdef uint32_t operations = <uint32_t> (tree.log_end - self._recorded)
        cdef KeyValue kv
        cdef Event event
        cdef char* p
        cdef int64_t revision = tree.head
        cdef uint32_t kn, vn
        for i in range(self._recorded, tree.log_end):
            kv = (<Event> event_at(tree, i)).kv
            n += OPERATION_HEADER + PyBytes_GET_SIZE(kv.key) + PyBytes_GET_SIZE(kv.value)
        p = self._reserve(FRAME_HEADER + n)
        (<uint32_t*> p)[0] = <uint32_t> n
        p += FRAME_HEADER
        (<uint8_t*> p)[0] = 1
        memcpy(p + 1, &revision, 8)
        memcpy(p + 9, &operations, 4)
        p += 13
        for i in range(self._recorded, tree.log_end):
            event = <Event> event_at(tree, i)
            kv = event.kv
            kn = <uint32_t> PyBytes_GET_SIZE(kv.key)
            vn = <uint32_t> PyBytes_GET_SIZE(kv.value)
            (<uint8_t*> p)[0] = 1 if event.deleted else 0
            memcpy(p + 1, &kn, 4)
            memcpy(p + 5, &vn, 4)
            memcpy(p + 9, &kv.lease, 8)
            memcpy(p + OPERATION_HEADER, PyBytes_AS_STRING(kv.key), kn)
            memcpy(p + OPERATION_HEADER + kn, PyBytes_AS_STRING(kv.value), vn)
            p += OPERATION_HEADER + kn + vn
        (<uint8_t*> p)[0] = TRAILER
        self._gathered_n += FRAME_HEADER + n
        self._recorded = tree.log_end
        return self._gathered_n

    def control(self, uint8_t type, bytes payload):
        """Gather a control record; returns the bytes gathered so far."""
        cdef size_t n = FRAME_HEADER + PyBytes_GET_SIZE(payload) + 2
        lay(self._reserve(n), type, payload)
        self._gathered_n += n
        return self._gathered_n

    @property
    def gathered(self):
        return self._gathered_n

    def drop(self, int64_t position):
        """Forget what is gathered; the tree's log ends at `position` again."""
        self._gathered_n = 0
        self._recorded = position

    # Writing

    @property
    def idle(self):
        return self._state == IDLE

    def flush(self):
        """Hand everything gathered over to the thread. Only while idle and with something gathered."""
        cdef char* buf
        cdef size_t cap
        pthread_mutex_lock(&self._lock)
        buf = self._out
        cap = self._out_cap
        self._out = self._gathered
        self._out_n = self._gathered_n
        self._out_cap = self._gathered_cap
        self._gathered = buf
        self._gathered_cap = cap
        self._gathered_n = 0
        self._state = BUSY
        pthread_cond_signal(&self._cond)
        pthread_mutex_unlock(&self._lock)

    def result(self):
        """After the eventfd said so: None when the group is on disk, else (call, errno, whether it is for good). The journal is idle then."""
        pthread_mutex_lock(&self._lock)
        if self._state == DONE:
            self._state = IDLE
        pthread_mutex_unlock(&self._lock)
        if self._out_cap > KEPT_BYTES_MAX:
            free(self._out)
            self._out = NULL
            self._out_cap = 0
        if self._error:
            error = (<bytes> self._error_call).decode(), self._error, self._fatal
            if not self._fatal:
                self._error = 0
            return error
        return None

    @property
    def finished(self):
        return self._state == DONE

    def run(self):
        """The thread's body: returns after `stop`."""
        with nogil:
            self._run()

    def stop(self):
        pthread_mutex_lock(&self._lock)
        self._stopping = True
        pthread_cond_signal(&self._cond)
        pthread_mutex_unlock(&self._lock)

    cdef void _run(self) noexcept nogil:
        cdef uint64_t one = 1
        while True:
            pthread_mutex_lock(&self._lock)
            while self._state != BUSY and not self._stopping:
                pthread_cond_wait(&self._cond, &self._lock)
            if self._state != BUSY:
                pthread_mutex_unlock(&self._lock)
                return
            pthread_mutex_unlock(&self._lock)
            if not self._error:
                self._write_group()
            pthread_mutex_lock(&self._lock)
            self._state = DONE
            pthread_mutex_unlock(&self._lock)
            write(self._notify_fd, &one, 8)

    cdef void _write_group(self) noexcept nogil:
        cdef size_t at = 0
        cdef uint32_t crc = self.crc
        cdef int64_t end = self.offset + self._preface_n + self._out_n
        if self._preface_n:
            crc = seal(self._preface, crc)
        while at < self._out_n:
            crc = seal(self._out + at, crc)
            at += FRAME_HEADER + (<uint32_t*> (self._out + at))[0]
        if end > self._allocated:
            if fallocate(self._fd, 0, self.offset, end - self.offset + ALLOCATE_BYTES) == 0:
                self._allocated = end + ALLOCATE_BYTES
            elif errno == EOPNOTSUPP:
                self._allocated = 0x7FFFFFFFFFFFFFFF
        if self._write_all(self._preface, self._preface_n) or self._write_all(self._out, self._out_n):
            self._error_call = b"write"
            self._fatal = not (self._error == ENOSPC or self._error == EDQUOT or self._error == EFBIG)
            # Take the part that went through back, so that the next group follows the last good one.
            if not self._fatal and (ftruncate(self._fd, self.offset) or lseek(self._fd, self.offset, 0) < 0 or fdatasync(self._fd)):
                self._fatal = True
            self._allocated = self.offset
            return
        if self._sync and self._sync_file():
            self._error_call = b"fdatasync"
            self._fatal = True
            return
        self.crc = crc
        self.offset = end
        self._preface_n = 0

    cdef int _write_all(self, char* data, size_t size) noexcept nogil:
        cdef size_t at = 0
        cdef Py_ssize_t n
        while at < size:
            if self._fail_write:
                self._fail_write -= 1
                if self._fail_write == 0:
                    write(self._fd, data + at, min(<size_t> self._fail_partial, size - at))
                    self._error = self._fail_errno
                    return -1
            n = write(self._fd, data + at, size - at)
            if n < 0:
                if errno == EINTR:
                    continue
                self._error = errno
                return -1
            at += n
        return 0

    cdef int _sync_file(self) noexcept nogil:
        if self._fail_sync:
            self._fail_sync -= 1
            if self._fail_sync == 0:
                self._error = self._fail_errno
                return -1
        while fdatasync(self._fd):
            if errno != EINTR:
                self._error = errno
                return -1
        return 0


# The way back

cdef bint has_zero_sector(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Whether some sector's part of data[start:end] is all zeros: what a write that a power cut interrupted leaves."""
    cdef Py_ssize_t i = start, stop
    while i < end:
        stop = min((i // SECTOR + 1) * SECTOR, end)
        while i < stop and data[i] == 0:
            i += 1
        if i == stop:
            return True
        i = (i // SECTOR + 1) * SECTOR
    return False


class Damaged(Exception):
    """A frame that is not what was written; `offset` is where it starts. `torn`: it may be a write that never finished.
    `crc`: where the chain stands before it."""

    def __init__(self, offset, why, torn, crc):
        super().__init__(why)
        self.offset = offset
        self.torn = torn
        self.crc = crc


def scan(const unsigned char[::1] data, Py_ssize_t offset, uint32_t crc, on_frame):
    """Check frames from `offset` on and call `on_frame(type, start, end)` for each payload, up to the end or to where only zeros follow.

    -> (where the last frame ends, the CRC chain there). Raises Damaged."""
    cdef Py_ssize_t size = data.shape[0], written = size, end
    cdef uint32_t length, body_crc, header_crc, chained
    cdef const unsigned char* p
    while written > offset and data[written - 1] == 0:
        written -= 1
    while offset < written:
        if size - offset < FRAME_HEADER:
            raise Damaged(offset, "the frame's header is cut", True, crc)
        p = &data[offset]
        memcpy(&length, p, 4)
        memcpy(&body_crc, p + 4, 4)
        memcpy(&header_crc, p + 8, 4)
        if crc32c_any(0, p, 8) != header_crc or length < 2:
            end = min(((offset + FRAME_HEADER - 1) // SECTOR + 1) * SECTOR, size)
            raise Damaged(
                offset, "the frame's header does not match its checksum", written <= offset + FRAME_HEADER or has_zero_sector(&data[0], offset, end), crc)
        end = offset + FRAME_HEADER + length
        if end > size:
            raise Damaged(offset, "the frame is cut", True, crc)
        chained = crc32c_any(crc, p + FRAME_HEADER, length)
        if chained != body_crc:
            raise Damaged(
                offset, "the frame does not match its checksum", data[end - 1] == 0 or has_zero_sector(&data[0], offset + FRAME_HEADER, end), crc)
        crc = chained
        on_frame(p[FRAME_HEADER], offset + FRAME_HEADER + 1, end - 1)
        offset = end
    return offset, crc


def replay(Tree tree, const unsigned char[::1] data, Py_ssize_t start, Py_ssize_t end, on_event=None):
    """Apply one transaction's payload to the tree. Those at or below its head are there already. ValueError when it makes no sense."""
    cdef int64_t revision, lease
    cdef uint32_t operations, kn, vn
    cdef const char* p
    cdef uint8_t kind
    cdef Event event
    cdef bytes key
    if end - start < 12:
        raise ValueError("a transaction is cut")
    p = <const char*> &data[start]
    memcpy(&revision, p, 8)
    memcpy(&operations, p + 8, 4)
    if revision <= tree.head:
        return
    if revision != tree.head + 1:
        raise ValueError(f"revision {revision} follows {tree.head}")
    start += 12
    while operations:
        if end - start < OPERATION_HEADER:
            raise ValueError("an operation is cut")
        p = <const char*> &data[start]
        kind = (<const uint8_t*> p)[0]
        memcpy(&kn, p + 1, 4)
        memcpy(&vn, p + 5, 4)
        memcpy(&lease, p + 9, 8)
        start += OPERATION_HEADER
        if end - start < <Py_ssize_t> kn + <Py_ssize_t> vn or kind > 1:
            raise ValueError("an operation is cut")
        p += OPERATION_HEADER
        key = PyBytes_FromStringAndSize(p, kn)
        if kind == 1:
            event = tree.delete(key, revision)
            if event is None:
                raise ValueError(f"revision {revision} deletes a key that is not there")
        else:
            event = tree.put(key, PyBytes_FromStringAndSize(p + kn, vn), revision, -1, lease)
        if on_event is not None:
            on_event(event)
        start += kn + vn
        operations -= 1
