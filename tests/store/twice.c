/* Loaded before libc: a directory tells each name that begins with "twice" two times. */
#define _GNU_SOURCE
#include <dirent.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t getdents64(int directory, void *buffer, size_t bytes)
{
    static __thread char told[1 << 20] __attribute__((aligned(16)));
    ssize_t got = syscall(SYS_getdents64, directory, told, bytes / 2 < sizeof told ? bytes / 2 : sizeof told);
    char *end = buffer;

    for (ssize_t at = 0; at < got;) {
        struct dirent64 *entry = (struct dirent64 *)(told + at);
        int times = strncmp(entry->d_name, "twice", 5) ? 1 : 2;

        for (; times; times--, end += entry->d_reclen)
            memcpy(end, entry, entry->d_reclen);
        at += entry->d_reclen;
    }
    return got < 0 ? got : end - (char *)buffer;
}
