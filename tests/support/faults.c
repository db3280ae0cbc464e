/*
 * Counts the calls by which a program changes (or reads) what is below one folder, and lets one of them fail or be the last.
 * Loaded with LD_PRELOAD into a program and all its children; see faults.py, which shares `struct plan` with it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHUTDOWN 0x8004587d /* FS_IOC_SHUTDOWN of ext4 and xfs */

enum action { WATCH, KILL, CUT, FAIL };

struct plan {
	_Atomic uint32_t calls; /* so far */
	uint32_t first, last;   /* the calls that are hit, counted from 1 */
	uint32_t action;
	uint32_t argument;      /* errno, or the flag of the shutdown */
	uint32_t with_reads, has_path;
	char only[256];         /* "|fsync|fdatasync|", or nothing for every call */
	char path[256];         /* the file below the folder, where has_path says so */
	char under[512];
};

static struct plan *plan;
static int log_fd = -1;

__attribute__((constructor)) static void join_in(void)
{
	const char *file = getenv("FAULTS_PLAN"), *log = getenv("FAULTS_LOG");
	int fd = file ? syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *at = mmap(NULL, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	syscall(SYS_close, fd);
	if (at == MAP_FAILED)
		return;
	plan = at;
	log_fd = log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
}

static _Noreturn void end_everything(void)
{
	kill(0, SIGKILL); /* the group: every child dies with it */
	for (;;)
		kill(getpid(), SIGKILL);
}

static _Noreturn void cut_the_power(void)
{
	uint32_t flag = plan->argument;
	int root = syscall(SYS_openat, AT_FDCWD, plan->under, O_RDONLY | O_DIRECTORY);
	if (root < 0 || ioctl(root, SHUTDOWN, &flag) != 0)
		dprintf(log_fd, "the power could not be cut: %s\n", strerror(errno));
	end_everything();
}

/* Whether the call on this path is to fail; errno is set then. */
static int hit(const char *name, const char *path)
{
	char marked[64];
	if (strncmp(path, plan->under, strlen(plan->under)) != 0)
		return 0;
	snprintf(marked, sizeof marked, "|%s|", name);
	if (plan->only[0] && !strstr(plan->only, marked))
		return 0;
	if (plan->has_path && strcmp(path + strlen(plan->under), plan->path) != 0)
		return 0;
	uint32_t number = atomic_fetch_add(&plan->calls, 1) + 1;
	if (log_fd >= 0) {
		char line[PATH_MAX + 64];
		int length = snprintf(line, sizeof line, "%u %s %s\n", number, name, path + strlen(plan->under));
		syscall(SYS_write, log_fd, line, length);
	}
	if (number < plan->first || number > plan->last)
		return 0;
	switch (plan->action) {
	case KILL: end_everything();
	case CUT: cut_the_power();
	case FAIL: errno = plan->argument; return 1;
	default: return 0;
	}
}

static int path_of(int fd, char *path)
{
	char link[64];
	if (fd == AT_FDCWD)
		return getcwd(path, PATH_MAX) ? 0 : -1;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, PATH_MAX - 1);
	if (length <= 0)
		return -1;
	path[length] = 0;
	return 0;
}

static int hit_fd(const char *name, int fd)
{
	char path[PATH_MAX];
	int before = errno;
	if (!plan || path_of(fd, path) != 0)
		return errno = before, 0;
	return hit(name, path) || (errno = before, 0);
}

static int hit_at(const char *name, int folder, const char *file)
{
	char path[2 * PATH_MAX];
	int before = errno;
	if (!plan || !file)
		return 0;
	if (file[0] == '/')
		snprintf(path, sizeof path, "%s", file);
	else if (path_of(folder, path) == 0)
		snprintf(path + strlen(path), sizeof path - strlen(path), "/%s", file);
	else
		return errno = before, 0;
	return hit(name, path) || (errno = before, 0);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* RESULT NAME(PARAMETERS) with its ARGUMENTS, the first of which is the open file. */
#define ON_FD(result, name, parameters, ...)                                     \
	result name parameters                                                   \
	{                                                                        \
		static result(*real) parameters;                                 \
		if (!real)                                                       \
			real = (result(*) parameters)dlsym(RTLD_NEXT, #name);    \
		return hit_fd(#name, FIRST(__VA_ARGS__)) ? -1 : real(__VA_ARGS__); \
	}
#define READ_FD(result, name, parameters, ...)                                   \
	result name parameters                                                   \
	{                                                                        \
		static result(*real) parameters;                                 \
		if (!real)                                                       \
			real = (result(*) parameters)dlsym(RTLD_NEXT, #name);    \
		int is_hit = plan && plan->with_reads && hit_fd(#name, FIRST(__VA_ARGS__)); \
		return is_hit ? -1 : real(__VA_ARGS__);                          \
	}
#define AT(result, name, parameters, folder, path, ...)                          \
	result name parameters                                                   \
	{                                                                        \
		static result(*real) parameters;                                 \
		if (!real)                                                       \
			real = (result(*) parameters)dlsym(RTLD_NEXT, #name);    \
		return hit_at(#name, folder, path) ? -1 : real(__VA_ARGS__);     \
	}
#define FIRST(first, ...) first

ON_FD(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), fd, parts, count)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t offset), fd, data, size, offset)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t offset), fd, data, size, offset)
ON_FD(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t offset), fd, parts, count, offset)
ON_FD(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t offset), fd, parts, count, offset)
ON_FD(ssize_t, pwritev2, (int fd, const struct iovec *parts, int count, off_t offset, int flags), fd, parts, count, offset, flags)
ON_FD(ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t offset, int flags), fd, parts, count, offset, flags)
ON_FD(ssize_t, sendfile, (int fd, int source, off_t *offset, size_t size), fd, source, offset, size)
ON_FD(ssize_t, sendfile64, (int fd, int source, off64_t *offset, size_t size), fd, source, offset, size)
ON_FD(int, ftruncate, (int fd, off_t size), fd, size)
ON_FD(int, ftruncate64, (int fd, off64_t size), fd, size)
ON_FD(int, fallocate, (int fd, int mode, off_t offset, off_t size), fd, mode, offset, size)
ON_FD(int, fallocate64, (int fd, int mode, off64_t offset, off64_t size), fd, mode, offset, size)
ON_FD(int, fsync, (int fd), fd)
ON_FD(int, fdatasync, (int fd), fd)
ON_FD(int, syncfs, (int fd), fd)
ON_FD(int, fchmod, (int fd, mode_t mode), fd, mode)
ON_FD(int, fchown, (int fd, uid_t owner, gid_t group), fd, owner, group)
ON_FD(int, futimens, (int fd, const struct timespec times[2]), fd, times)

ssize_t copy_file_range(int source, off64_t *from, int fd, off64_t *to, size_t size, unsigned int flags)
{
	return hit_fd("copy_file_range", fd) ? -1 : REAL(copy_file_range)(source, from, fd, to, size, flags);
}

READ_FD(ssize_t, read, (int fd, void *data, size_t size), fd, data, size)
READ_FD(ssize_t, readv, (int fd, const struct iovec *parts, int count), fd, parts, count)
READ_FD(ssize_t, pread, (int fd, void *data, size_t size, off_t offset), fd, data, size, offset)
READ_FD(ssize_t, pread64, (int fd, void *data, size_t size, off64_t offset), fd, data, size, offset)
READ_FD(ssize_t, preadv, (int fd, const struct iovec *parts, int count, off_t offset), fd, parts, count, offset)
READ_FD(ssize_t, preadv64, (int fd, const struct iovec *parts, int count, off64_t offset), fd, parts, count, offset)
READ_FD(ssize_t, preadv2, (int fd, const struct iovec *parts, int count, off_t offset, int flags), fd, parts, count, offset, flags)
READ_FD(ssize_t, preadv64v2, (int fd, const struct iovec *parts, int count, off64_t offset, int flags), fd, parts, count, offset, flags)

AT(int, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
AT(int, mkdirat, (int folder, const char *path, mode_t mode), folder, path, folder, path, mode)
AT(int, rmdir, (const char *path), AT_FDCWD, path, path)
AT(int, unlink, (const char *path), AT_FDCWD, path, path)
AT(int, unlinkat, (int folder, const char *path, int flags), folder, path, folder, path, flags)
AT(int, rename, (const char *old, const char *new), AT_FDCWD, new, old, new)
AT(int, renameat, (int from, const char *old, int to, const char *new), to, new, from, old, to, new)
AT(int, renameat2, (int from, const char *old, int to, const char *new, unsigned int flags), to, new, from, old, to, new, flags)
AT(int, link, (const char *old, const char *new), AT_FDCWD, new, old, new)
AT(int, linkat, (int from, const char *old, int to, const char *new, int flags), to, new, from, old, to, new, flags)
AT(int, symlink, (const char *target, const char *path), AT_FDCWD, path, target, path)
AT(int, symlinkat, (const char *target, int folder, const char *path), folder, path, target, folder, path)
AT(int, truncate, (const char *path, off_t size), AT_FDCWD, path, path, size)
AT(int, truncate64, (const char *path, off64_t size), AT_FDCWD, path, path, size)
AT(int, chmod, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
AT(int, fchmodat, (int folder, const char *path, mode_t mode, int flags), folder, path, folder, path, mode, flags)
AT(int, utimensat, (int folder, const char *path, const struct timespec times[2], int flags), folder, path, folder, path, times, flags)

/* Only an open that makes or empties a file changes anything. */
#define OPENED(name, folder)                                                     \
	mode_t mode = 0;                                                         \
	if (flags & (O_CREAT | O_TMPFILE)) {                                     \
		va_list rest;                                                    \
		va_start(rest, flags);                                           \
		mode = va_arg(rest, mode_t);                                     \
		va_end(rest);                                                    \
	}                                                                        \
	if (flags & (O_CREAT | O_TRUNC) && hit_at(#name, folder, path))          \
		return -1

int open(const char *path, int flags, ...)
{
	OPENED(open, AT_FDCWD);
	return REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	OPENED(open64, AT_FDCWD);
	return REAL(open64)(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...)
{
	OPENED(openat, folder);
	return REAL(openat)(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...)
{
	OPENED(openat64, folder);
	return REAL(openat64)(folder, path, flags, mode);
}
