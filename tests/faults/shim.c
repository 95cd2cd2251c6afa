/* Makes the n-th operation that changes files under a directory fail, or kill the process there.
 *
 * Preloaded into a process on Linux. Counted are write, pwrite, writev, fsync, fdatasync,
 * ftruncate, rename, unlink, rmdir and mkdir in all their forms, and opens that create, where the
 * file lies under the prefix. Armed by `fault_arm`, or by FAULT_AT, FAULT_KIND and FAULT_PREFIX.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 0, FULL = 1, FAILING = 2, KILL = 3 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char prefix[PATH_MAX];
static long at, seen;
static int kind, armed;

void fault_arm(long number, int what, const char *directory) {
    pthread_mutex_lock(&lock);
    at = number;
    kind = what;
    seen = 0;
    snprintf(prefix, sizeof prefix, "%s", directory);
    armed = 1;
    pthread_mutex_unlock(&lock);
}

long fault_disarm(void) {
    armed = 0;
    return seen;
}

__attribute__((constructor)) static void from_environment(void) {
    const char *number = getenv("FAULT_AT"), *what = getenv("FAULT_KIND");
    const char *directory = getenv("FAULT_PREFIX");
    if (number && what && directory) fault_arm(atol(number), atoi(what), directory);
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAULT_REPORT");
    if (!path) return;
    armed = 0;
    FILE *file = fopen(path, "w");
    if (file) {
        fprintf(file, "%ld", seen);
        fclose(file);
    }
}

static int is_under(const char *path) {
    size_t length = strlen(prefix);
    return strncmp(path, prefix, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* Whether this operation is to fail; `takes_room`: a full disk goes on refusing it. */
static int strikes(const char *path, int takes_room) {
    if (!armed || !is_under(path)) return 0;
    pthread_mutex_lock(&lock);
    seen++;
    int first = seen == at, later = at > 0 && seen > at && kind == FULL && takes_room;
    pthread_mutex_unlock(&lock);
    if (first && kind == KILL) kill(getpid(), SIGKILL);
    if (first && kind == FULL && !takes_room) { /* the disk is full from the next write on */
        return 0;
    }
    if (first || later) errno = kind == FULL ? ENOSPC : EIO;
    return (first || later) && kind != COUNT;
}

static int strikes_fd(int fd, int takes_room) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strikes(path, takes_room);
}

static int strikes_at(int directory, const char *name, int takes_room) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    if (name[0] == '/') return strikes(name, takes_room);
    if (directory == AT_FDCWD) {
        if (!getcwd(path, sizeof path)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length <= 0) return 0;
        path[length] = 0;
    }
    size_t used = strlen(path);
    snprintf(path + used, sizeof path - used, "/%s", name);
    return strikes(path, takes_room);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t count) {
    return strikes_fd(fd, 1) ? -1 : REAL(write)(fd, data, count);
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    return strikes_fd(fd, 1) ? -1 : REAL(pwrite)(fd, data, count, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    return strikes_fd(fd, 1) ? -1 : REAL(pwrite64)(fd, data, count, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return strikes_fd(fd, 1) ? -1 : REAL(writev)(fd, parts, count);
}
int ftruncate(int fd, off_t length) { return strikes_fd(fd, 1) ? -1 : REAL(ftruncate)(fd, length); }
int ftruncate64(int fd, off64_t length) {
    return strikes_fd(fd, 1) ? -1 : REAL(ftruncate64)(fd, length);
}
int fsync(int fd) { return strikes_fd(fd, 1) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return strikes_fd(fd, 1) ? -1 : REAL(fdatasync)(fd); }
int rename(const char *from, const char *to) {
    return strikes_at(AT_FDCWD, from, 0) ? -1 : REAL(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    return strikes_at(a, from, 0) ? -1 : REAL(renameat)(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return strikes_at(a, from, 0) ? -1 : REAL(renameat2)(a, from, b, to, flags);
}
int unlink(const char *path) { return strikes_at(AT_FDCWD, path, 0) ? -1 : REAL(unlink)(path); }
int unlinkat(int directory, const char *path, int flags) {
    return strikes_at(directory, path, 0) ? -1 : REAL(unlinkat)(directory, path, flags);
}
int rmdir(const char *path) { return strikes_at(AT_FDCWD, path, 0) ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) {
    return strikes_at(AT_FDCWD, path, 1) ? -1 : REAL(mkdir)(path, mode);
}

#define OPEN(name, directory, path)                                          \
    mode_t mode = 0;                                                         \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                   \
        va_list rest;                                                        \
        va_start(rest, flags);                                               \
        mode = va_arg(rest, mode_t);                                         \
        va_end(rest);                                                        \
        if (strikes_at(directory, path, 1)) return -1;                       \
    }

int open(const char *path, int flags, ...) {
    OPEN(open, AT_FDCWD, path)
    return REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    OPEN(open64, AT_FDCWD, path)
    return REAL(open64)(path, flags, mode);
}
int openat(int directory, const char *path, int flags, ...) {
    OPEN(openat, directory, path)
    return REAL(openat)(directory, path, flags, mode);
}
int openat64(int directory, const char *path, int flags, ...) {
    OPEN(openat64, directory, path)
    return REAL(openat64)(directory, path, flags, mode);
}
