/* Writes down every call of this process that changes a file below a folder, in the order in which they are made: for
 * tests/support/calls.rs. Calls of several threads wait for one another. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static const char *under = "";

__attribute__((constructor)) static void begin(void) {
    const char *to = getenv("OUTRIGGER_TEST_JOURNAL"), *of = getenv("OUTRIGGER_TEST_FILES_OF");
    if (!to || !of) return;
    under = of;
    journal = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void put(const void *bytes, size_t n) {
    for (const char *at = bytes; n > 0;) {
        long done = syscall(SYS_write, journal, at, n);
        if (done <= 0) abort();
        at += done, n -= done;
    }
}

/* The place of a path below the folder; NULL for one that is elsewhere. */
static const char *place(const char *path) {
    size_t n = strlen(under);
    return journal >= 0 && strncmp(path, under, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

static const char *of_fd(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (n < 0) return NULL;
    buffer[n] = 0;
    return place(buffer);
}

static const char *of_path(int dir, const char *path, char *buffer) {
    if (path[0] == '/') return place(path);
    if (dir == AT_FDCWD) {
        if (!getcwd(buffer, PATH_MAX)) return NULL;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        long n = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
        if (n < 0) return NULL;
        buffer[n] = 0;
    }
    strncat(buffer, "/", PATH_MAX - strlen(buffer) - 1);
    strncat(buffer, path, PATH_MAX - strlen(buffer) - 1);
    return place(buffer);
}

static void told(char kind, const char *path, const char *to, uint64_t at, const void *bytes, uint64_t n) {
    uint16_t length = strlen(path), length_to = to ? strlen(to) : 0;
    put(&kind, 1), put(&length, 2), put(path, length), put(&length_to, 2);
    if (to) put(to, length_to);
    put(&at, 8), put(&n, 8);
    if (n) put(bytes, n);
}

static int opened(int dir, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX] = "";
    const char *at = flags & (O_CREAT | O_TRUNC) ? of_path(dir, path, buffer) : NULL;
    if (!at) return syscall(SYS_openat, dir, path, flags, mode);
    pthread_mutex_lock(&one);
    int was = syscall(SYS_faccessat, dir, path, F_OK) == 0;
    int fd = syscall(SYS_openat, dir, path, flags, mode), error = errno;
    if (fd >= 0 && !was) told('c', at, NULL, 0, NULL, 0);
    if (fd >= 0 && was && flags & O_TRUNC) told('t', at, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&one);
    errno = error;
    return fd;
}

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & O_CREAT) {                                                                                             \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }
int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE return opened(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE return opened(dir, path, flags, mode); }

static ssize_t written(int fd, const void *bytes, size_t n, off_t at) {
    char buffer[PATH_MAX];
    const char *path = journal >= 0 ? of_fd(fd, buffer) : NULL;
    if (!path) return at < 0 ? syscall(SYS_write, fd, bytes, n) : syscall(SYS_pwrite64, fd, bytes, n, at);
    pthread_mutex_lock(&one);
    off_t from = at < 0 ? syscall(SYS_lseek, fd, 0, SEEK_CUR) : at;
    ssize_t done = at < 0 ? syscall(SYS_write, fd, bytes, n) : syscall(SYS_pwrite64, fd, bytes, n, at);
    int error = errno;
    if (done > 0) told('w', path, NULL, from, bytes, done);
    pthread_mutex_unlock(&one);
    errno = error;
    return done;
}
ssize_t write(int fd, const void *bytes, size_t n) { return written(fd, bytes, n, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return written(fd, bytes, n, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t n, off_t at) { return written(fd, bytes, n, at); }

/* Calls that end with 0, on a file that is open. */
#define ON_FD(kind, at, call)                                                                                          \
    char buffer[PATH_MAX];                                                                                             \
    const char *path = journal >= 0 ? of_fd(fd, buffer) : NULL;                                                        \
    if (!path) return call;                                                                                            \
    pthread_mutex_lock(&one);                                                                                          \
    int done = call, error = errno;                                                                                    \
    if (done == 0) told(kind, path, NULL, at, NULL, 0);                                                                \
    pthread_mutex_unlock(&one);                                                                                        \
    errno = error;                                                                                                     \
    return done;
int ftruncate(int fd, off_t size) { ON_FD('t', size, syscall(SYS_ftruncate, fd, size)) }
int ftruncate64(int fd, off_t size) { ON_FD('t', size, syscall(SYS_ftruncate, fd, size)) }
int fsync(int fd) { ON_FD('s', 0, syscall(SYS_fsync, fd)) }
int fdatasync(int fd) { ON_FD('s', 0, syscall(SYS_fdatasync, fd)) }

/* And on a name. */
#define ON_NAME(kind, dir, name, to, call)                                                                             \
    char buffer[PATH_MAX] = "", second[PATH_MAX] = "";                                                                 \
    (void)second;                                                                                                      \
    const char *path = journal >= 0 ? of_path(dir, name, buffer) : NULL;                                               \
    if (!path) return call;                                                                                            \
    pthread_mutex_lock(&one);                                                                                          \
    int done = call, error = errno;                                                                                    \
    if (done == 0) told(kind, path, to, 0, NULL, 0);                                                                   \
    pthread_mutex_unlock(&one);                                                                                        \
    errno = error;                                                                                                     \
    return done;
int rename(const char *from, const char *to) {
    ON_NAME('r', AT_FDCWD, from, of_path(AT_FDCWD, to, second), syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0))
}
int unlink(const char *name) { ON_NAME('u', AT_FDCWD, name, NULL, syscall(SYS_unlinkat, AT_FDCWD, name, 0)) }
int rmdir(const char *name) { ON_NAME('u', AT_FDCWD, name, NULL, syscall(SYS_unlinkat, AT_FDCWD, name, AT_REMOVEDIR)) }
int unlinkat(int dir, const char *name, int flags) { ON_NAME('u', dir, name, NULL, syscall(SYS_unlinkat, dir, name, flags)) }
int mkdir(const char *name, mode_t mode) { ON_NAME('d', AT_FDCWD, name, NULL, syscall(SYS_mkdirat, AT_FDCWD, name, mode)) }
