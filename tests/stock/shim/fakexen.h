/*
 * A Xen host without Xen: libxencall.so.1 and libxenforeignmemory.so.1 over one directory of files.
 *
 * The real libxenctrl and libxenguest run on top of it, so that a save helper meets their code and not a copy of it.
 * One directory ($FAKEXEN_DIR) is one host with one domain:
 *
 *   state   struct fake_domain: what the hypervisor knows of the domain
 *   memory  sparse, the page of gfn N at byte N * 4096
 *   p2m     one byte per gfn, enum fake_p2m
 *   dirty   the log-dirty bitmap, one bit per gfn
 *   grant   the first frame of the grant table
 *
 * Another process, the test, maps the same files: it is the guest and libxl. Whoever touches them holds a flock on
 * "state". tests/stock/fakexen.py has the same layout for Python.
 */
#ifndef FAKEXEN_H
#define FAKEXEN_H

#include <stddef.h>
#include <stdint.h>

#define FAKE_PAGE_SIZE 4096UL
#define FAKE_PARAMS 39    /* HVM_NR_PARAMS of 4.17, checked at compile time */
#define FAKE_LEAVES 64
#define FAKE_MSRS 8
#define FAKE_CONTEXT 32768

enum fake_p2m {
    P2M_HOLE = 0,
    P2M_RAM = 1,
    P2M_SPECIAL = 2,      /* a frame of Xen's own, such as shared_info: can be mapped, is no RAM */
    P2M_BROKEN = 3,
};

struct fake_leaf { uint32_t leaf, subleaf, a, b, c, d; };
struct fake_msr { uint32_t index, flags; uint64_t value; };

struct fake_domain {
    char magic[8];                      /* FAKE_MAGIC */
    uint32_t layout_bytes;              /* sizeof(struct fake_domain): tells an old test from a new shim */
    uint32_t domid;
    uint32_t hvm;
    uint32_t pause_count;
    uint32_t shutdown;
    uint32_t shutdown_reason;
    uint32_t log_dirty;
    uint32_t destroyed;
    uint64_t frame_limit;               /* gfns that the files have room for */
    uint64_t max_pages;
    uint64_t tot_pages;
    uint64_t max_mapped_gfn;            /* grows, never shrinks; 0 in an empty domain */
    uint64_t dirty_count;               /* since the last CLEAN */
    uint64_t tsc_nsec;
    uint32_t tsc_mode, tsc_khz, tsc_incarnation;
    uint32_t nr_leaves, nr_msrs;
    uint32_t context_bytes;
    uint64_t params[FAKE_PARAMS];
    struct fake_leaf leaves[FAKE_LEAVES];
    struct fake_msr msrs[FAKE_MSRS];
    uint8_t context[FAKE_CONTEXT];
};

#define FAKE_MAGIC "FAKEXEN1"

struct fake_host {
    struct fake_domain *domain;
    uint8_t *p2m;
    uint8_t *dirty;
    int state_fd, memory_fd, grant_fd;
};

/* host.c */

/* The host of this process, opened at the first call; NULL with errno when $FAKEXEN_DIR is none. */
struct fake_host *fake_host(void);
void fake_lock(struct fake_host *host);
void fake_unlock(struct fake_host *host);
/* Every operation begins and ends with these. Begin returns the errno that $FAKEXEN_FAULTS wants here, or 0. */
int fake_begin(const char *operation);
/* Logs to $FAKEXEN_LOG; a negative result is -errno and becomes errno and -1. */
long fake_end(const char *operation, long result, const char *format, ...) __attribute__((format(printf, 3, 4)));
void fake_mark_dirty(struct fake_host *host, uint64_t gfn);
void fake_mark_clean(struct fake_host *host, uint64_t gfn);

/* domctl.c */
long fake_domctl(struct fake_host *host, void *arg);
long fake_sysctl(struct fake_host *host, void *arg);
long fake_hvm_op(struct fake_host *host, unsigned int cmd, void *arg);

/* memory.c */
long fake_memory_op(struct fake_host *host, unsigned int cmd, void *arg);

#endif
