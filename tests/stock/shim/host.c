/* The files of the fake host, its log of operations, and faults by script. */
#include "fakexen.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int log_fd = -1;

static int open_in(const char *dir, const char *name)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return open(path, O_RDWR | O_CLOEXEC);
}

static void *map_whole(int fd)
{
    struct stat st;
    void *address;

    if (fd < 0 || fstat(fd, &st) < 0)
        return NULL;
    address = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return address == MAP_FAILED ? NULL : address;
}

static void *map_file(const char *dir, const char *name)
{
    int fd = open_in(dir, name);
    void *address = map_whole(fd);

    if (fd >= 0)
        close(fd);
    return address;
}

struct fake_host *fake_host(void)
{
    static struct fake_host host;
    const char *dir = getenv("FAKEXEN_DIR"), *log = getenv("FAKEXEN_LOG");

    if (host.domain)
        return &host;
    if (!dir) {
        fprintf(stderr, "fakexen: FAKEXEN_DIR names no directory of a fake domain.\n");
        errno = ENOENT;
        return NULL;
    }
    host.state_fd = open_in(dir, "state");
    host.memory_fd = open_in(dir, "memory");
    host.grant_fd = open_in(dir, "grant");
    host.p2m = map_file(dir, "p2m");
    host.dirty = map_file(dir, "dirty");
    host.domain = map_whole(host.state_fd);
    if (!host.domain || !host.p2m || !host.dirty || host.memory_fd < 0 || host.grant_fd < 0) {
        fprintf(stderr, "fakexen: %s is no fake domain: %s.\n", dir, strerror(errno));
        host.domain = NULL;
        return NULL;
    }
    if (memcmp(host.domain->magic, FAKE_MAGIC, 8) || host.domain->layout_bytes != sizeof(struct fake_domain)) {
        fprintf(stderr, "fakexen: %s/state has another layout (%u bytes) than this shim (%zu).\n", dir,
                host.domain->layout_bytes, sizeof(struct fake_domain));
        host.domain = NULL;
        errno = EINVAL;
        return NULL;
    }
    if (log)
        log_fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    return &host;
}

void fake_lock(struct fake_host *host)
{
    while (flock(host->state_fd, LOCK_EX) < 0 && errno == EINTR)
        ;
}

void fake_unlock(struct fake_host *host)
{
    flock(host->state_fd, LOCK_UN);
}

/*
 * $FAKEXEN_FAULTS: "OPERATION:N:WHAT,...": the Nth call of OPERATION in this process (with "N+" also every later one)
 * fails with errno WHAT, or, when WHAT is "sigNUMBER", the process gets that signal and the call goes on.
 */
#define MAX_FAULTS 16

static struct fault {
    char operation[32];
    unsigned long nth, seen;
    int onwards, is_signal, what;
} faults[MAX_FAULTS];
static int nr_faults = -1;

static void read_faults(void)
{
    const char *text = getenv("FAKEXEN_FAULTS");

    for (nr_faults = 0; text && *text && nr_faults < MAX_FAULTS; nr_faults++) {
        struct fault *f = &faults[nr_faults];
        int used = 0;

        if (sscanf(text, "%31[a-z_]:%lu%n", f->operation, &f->nth, &used) != 2)
            break;
        text += used;
        f->onwards = *text == '+';
        text += f->onwards;
        f->is_signal = !strncmp(text, ":sig", 4);
        if (*text != ':')
            break;
        f->what = (int)strtol(text + (f->is_signal ? 4 : 1), (char **)&text, 10);
        if (*text == ',')
            text++;
    }
    if (text && *text) {
        fprintf(stderr, "fakexen: FAKEXEN_FAULTS is not understood from '%s' on.\n", text);
        abort();    /* a test whose fault never comes would pass for nothing */
    }
}

int fake_begin(const char *operation)
{
    int i;

    if (nr_faults < 0)
        read_faults();
    for (i = 0; i < nr_faults; i++) {
        struct fault *f = &faults[i];

        if (strcmp(f->operation, operation))
            continue;
        f->seen++;
        if (f->seen != f->nth && !(f->onwards && f->seen > f->nth))
            continue;
        if (!f->is_signal)
            return f->what;
        raise(f->what);
    }
    return 0;
}

long fake_end(const char *operation, long result, const char *format, ...)
{
    char line[512];
    size_t at;
    va_list args;

    if (log_fd >= 0) {
        at = (size_t)snprintf(line, sizeof(line), "%s ", operation);
        va_start(args, format);
        at += (size_t)vsnprintf(line + at, sizeof(line) - at, format, args);
        va_end(args);
        at += (size_t)snprintf(line + at, sizeof(line) - at, " = %ld\n", result);
        if (write(log_fd, line, at) != (ssize_t)at)
            abort();    /* a test that reads half a log would judge wrongly */
    }
    if (result >= 0)
        return result;
    errno = (int)-result;
    return -1;
}

void fake_mark_dirty(struct fake_host *host, uint64_t gfn)
{
    uint8_t bit = (uint8_t)(1u << (gfn & 7));

    if (!host->domain->log_dirty || (host->dirty[gfn / 8] & bit))
        return;
    host->dirty[gfn / 8] |= bit;
    host->domain->dirty_count++;
}

void fake_mark_clean(struct fake_host *host, uint64_t gfn)
{
    host->dirty[gfn / 8] &= (uint8_t)~(1u << (gfn & 7));
}
