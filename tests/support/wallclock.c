/* Preloaded into a process, its wall clock is off by the seconds in the file that TEST_CLOCK_OFFSET names: an int64, read each time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t offset_s(void)
{
    static const volatile int64_t none, *shared;

    if (shared == NULL) {
        const char *path = getenv("TEST_CLOCK_OFFSET");
        int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
        void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);

        if (fd >= 0)
            close(fd);
        shared = mapped == MAP_FAILED ? &none : mapped;
    }
    return *shared;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);

    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset_s();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(now, zone);

    if (!failed)
        now->tv_sec += offset_s();
    return failed;
}

time_t time(time_t *now)
{
    time_t (*real)(time_t *) = dlsym(RTLD_NEXT, "time");
    time_t seconds = real(NULL) + offset_s();

    if (now != NULL)
        *now = seconds;
    return seconds;
}
