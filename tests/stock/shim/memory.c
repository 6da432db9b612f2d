/* libxenforeignmemory.so.1, and the memory_op hypercalls. */
#define _GNU_SOURCE
#include "fakexen.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <xen/xen.h>
#include <xen/memory.h>
#include <xenforeignmemory.h>

#define MAX_ORDER 18    /* the largest extent that dom0 may ask for: 1 GiB */

struct xenforeignmemory_handle { int unused; };
struct xenforeignmemory_resource_handle { void *address; size_t bytes; };

xenforeignmemory_handle *xenforeignmemory_open(struct xentoollog_logger *logger, unsigned open_flags)
{
    (void)logger;
    (void)open_flags;
    return fake_host() ? calloc(1, sizeof(xenforeignmemory_handle)) : NULL;
}

int xenforeignmemory_close(xenforeignmemory_handle *fmem)
{
    free(fmem);
    return 0;
}

int xenforeignmemory_restrict(xenforeignmemory_handle *fmem, domid_t domid)
{
    (void)fmem;
    (void)domid;
    errno = EOPNOTSUPP;
    return -1;
}

/* Frames that can be mapped, from arr[i] on, whose numbers follow each other. */
static size_t run_length(const struct fake_host *host, const xen_pfn_t *arr, size_t i, size_t pages)
{
    size_t n = 0;

    while (i + n < pages && arr[i + n] == arr[i] + n && arr[i + n] < host->domain->frame_limit &&
           (host->p2m[arr[i + n]] == P2M_RAM || host->p2m[arr[i + n]] == P2M_SPECIAL))
        n++;
    return n;
}

/*
 * One mmap for each run of frames. Frames that do not exist get an error of their own and a page that faults when it
 * is touched, as with the privcmd driver. MAP_POPULATE because the driver fills the page tables at once, too.
 */
static long map_frames(struct fake_host *host, char *base, int prot, size_t pages, const xen_pfn_t *arr, int *err)
{
    size_t i = 0, n;
    long failed = 0;

    while (i < pages) {
        n = run_length(host, arr, i, pages);
        if (n) {
            if (mmap(base + i * FAKE_PAGE_SIZE, n * FAKE_PAGE_SIZE, prot, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                     host->memory_fd, (off_t)(arr[i] * FAKE_PAGE_SIZE)) == MAP_FAILED)
                return -errno;
            if (err)
                memset(err + i, 0, n * sizeof(*err));
            i += n;
        } else {
            if (err)
                err[i] = -EINVAL;
            failed++;
            i++;
        }
    }
    return failed && !err ? -EINVAL : failed;
}

void *xenforeignmemory_map2(xenforeignmemory_handle *fmem, uint32_t dom, void *addr, int prot, int flags, size_t pages,
                            const xen_pfn_t arr[], int err[])
{
    struct fake_host *host = fake_host();
    long rc = -fake_begin("map");
    void *base = NULL;

    (void)fmem;
    if (!rc && (dom != host->domain->domid || host->domain->destroyed))
        rc = -ESRCH;
    if (!rc && !pages)
        rc = -EINVAL;
    if (!rc) {
        base = mmap(addr, pages * FAKE_PAGE_SIZE, PROT_NONE, flags | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) {
            base = NULL;
            rc = -errno;
        }
    }
    if (!rc) {
        fake_lock(host);
        rc = map_frames(host, base, prot, pages, arr, err);
        fake_unlock(host);
    }
    if (rc < 0 && base)
        munmap(base, pages * FAKE_PAGE_SIZE);
    rc = fake_end("map", rc, "pages=%zu first=%llu write=%d", pages, pages ? (unsigned long long)arr[0] : 0,
                  !!(prot & PROT_WRITE));
    return rc < 0 ? NULL : base;
}

void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages, const xen_pfn_t arr[],
                           int err[])
{
    return xenforeignmemory_map2(fmem, dom, NULL, prot, 0, pages, arr, err);
}

int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t pages)
{
    (void)fmem;
    return munmap(addr, pages * FAKE_PAGE_SIZE);
}

int xenforeignmemory_resource_size(xenforeignmemory_handle *fmem, domid_t domid, unsigned int type, unsigned int id,
                                   size_t *size)
{
    (void)fmem;
    (void)domid;
    (void)id;
    if (type != XENMEM_resource_grant_table) {
        errno = EOPNOTSUPP;
        return -1;
    }
    *size = FAKE_PAGE_SIZE;
    return 0;
}

xenforeignmemory_resource_handle *xenforeignmemory_map_resource(xenforeignmemory_handle *fmem, domid_t domid,
                                                                unsigned int type, unsigned int id,
                                                                unsigned long frame, unsigned long nr_frames,
                                                                void **paddr, int prot, int flags)
{
    struct fake_host *host = fake_host();
    xenforeignmemory_resource_handle *resource = NULL;
    long rc = -fake_begin("map_resource");
    void *address = MAP_FAILED;

    (void)fmem;
    if (!rc && domid != host->domain->domid)
        rc = -ESRCH;
    if (!rc && (type != XENMEM_resource_grant_table || id != XENMEM_resource_grant_table_id_shared || frame ||
                nr_frames != 1))
        rc = -EINVAL;
    if (!rc) {
        address = mmap(*paddr, FAKE_PAGE_SIZE, prot, flags | MAP_SHARED, host->grant_fd, 0);
        resource = malloc(sizeof(*resource));
        if (address == MAP_FAILED || !resource)
            rc = -ENOMEM;
    }
    if (!rc) {
        *paddr = resource->address = address;
        resource->bytes = FAKE_PAGE_SIZE;
    } else {
        free(resource);
        resource = NULL;
    }
    fake_end("map_resource", rc, "type=%u", type);
    return resource;
}

int xenforeignmemory_unmap_resource(xenforeignmemory_handle *fmem, xenforeignmemory_resource_handle *fres)
{
    int rc = fres ? munmap(fres->address, fres->bytes) : 0;

    (void)fmem;
    free(fres);
    return rc;
}

/* A frame that exists already gets a second page, like in Xen: the first is lost and still counted. */
static int populate_extent(struct fake_host *host, uint64_t gfn, uint64_t count)
{
    struct fake_domain *d = host->domain;
    uint64_t i;

    if (d->tot_pages + count > d->max_pages || gfn >= d->frame_limit || count > d->frame_limit - gfn)
        return -1;
    if (memchr(host->p2m + gfn, P2M_RAM, count) &&
        fallocate(host->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(gfn * FAKE_PAGE_SIZE),
                  (off_t)(count * FAKE_PAGE_SIZE)))
        return -1;
    memset(host->p2m + gfn, P2M_RAM, count);
    for (i = gfn; d->log_dirty && i < gfn + count; i++)
        fake_mark_dirty(host, i);
    d->tot_pages += count;
    if (gfn + count - 1 > d->max_mapped_gfn)
        d->max_mapped_gfn = gfn + count - 1;
    return 0;
}

static int remove_extent(struct fake_host *host, uint64_t gfn, uint64_t count)
{
    uint64_t i;

    if (gfn >= host->domain->frame_limit || count > host->domain->frame_limit - gfn)
        return -1;
    for (i = gfn; i < gfn + count; i++) {
        if (host->p2m[i] != P2M_RAM && host->p2m[i] != P2M_BROKEN)
            return -1;
        host->p2m[i] = P2M_HOLE;
        fake_mark_clean(host, i);
        host->domain->tot_pages--;
    }
    return fallocate(host->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(gfn * FAKE_PAGE_SIZE),
                     (off_t)(count * FAKE_PAGE_SIZE));
}

/* Both calls answer with the number of extents they managed; stopping early is no error to them. */
static long change_reservation(struct fake_host *host, const char *name, struct xen_memory_reservation *r,
                               int (*change)(struct fake_host *, uint64_t, uint64_t))
{
    long rc = -fake_begin(name);
    xen_pfn_t *extents = r->extent_start.p;
    unsigned long done = 0;

    if (!rc && r->domid != host->domain->domid)
        rc = -ESRCH;
    if (!rc && r->nr_extents > INT_MAX)
        rc = -EINVAL;
    if (!rc) {
        fake_lock(host);
        while (r->extent_order <= MAX_ORDER && done < r->nr_extents &&
               !change(host, extents[done], 1UL << r->extent_order))
            done++;
        fake_unlock(host);
        rc = (long)done;
    }
    return fake_end(name, rc, "extents=%lu order=%u first=%llu", (unsigned long)r->nr_extents, r->extent_order,
                    r->nr_extents ? (unsigned long long)extents[0] : 0);
}

/* A claim is refused when it is below what the domain has or above what it may have; 0 gives it back. */
static long claim(struct fake_host *host, const struct xen_memory_reservation *r)
{
    const struct fake_domain *d = host->domain;
    long rc = -fake_begin("claim");

    if (!rc && r->domid != d->domid)
        rc = -ESRCH;
    if (!rc && r->nr_extents && (r->nr_extents < d->tot_pages || r->nr_extents > d->max_pages))
        rc = -EINVAL;
    return fake_end("claim", rc, "pages=%lu", (unsigned long)r->nr_extents);
}

static long ask(struct fake_host *host, const char *name, domid_t domid, uint64_t answer)
{
    long rc = -fake_begin(name);

    if (!rc)
        rc = domid == host->domain->domid ? (long)answer : -ESRCH;
    return fake_end(name, rc, "domid=%u", domid);
}

long fake_memory_op(struct fake_host *host, unsigned int cmd, void *arg)
{
    switch (cmd) {
    case XENMEM_maximum_gpfn:
        return ask(host, "maximum_gpfn", *(domid_t *)arg, host->domain->max_mapped_gfn);
    case XENMEM_current_reservation:
        return ask(host, "current_reservation", *(domid_t *)arg, host->domain->tot_pages);
    case XENMEM_maximum_reservation:
        return ask(host, "maximum_reservation", *(domid_t *)arg, host->domain->max_pages);
    case XENMEM_populate_physmap:
        return change_reservation(host, "populate", arg, populate_extent);
    case XENMEM_decrease_reservation:
        return change_reservation(host, "decrease", arg, remove_extent);
    case XENMEM_claim_pages:
        return claim(host, arg);
    default:
        return fake_end("memory_op", -ENOSYS, "cmd=%u", cmd);
    }
}
