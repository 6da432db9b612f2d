/* libxencall.so.1: buffers that a hypervisor could read, and the way to each hypercall. */
#include "fakexen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xen/xen.h>
#include <xen/sched.h>
#include <xen/version.h>
#include <xencall.h>

#define VERSION ((4 << 16) | 17)

struct xencall_handle { int unused; };

xencall_handle *xencall_open(struct xentoollog_logger *logger, unsigned open_flags)
{
    int fault;

    (void)logger;
    (void)open_flags;
    if (!fake_host())
        return NULL;
    fault = fake_begin("open");
    return fake_end("open", -fault, "release=4.17") < 0 ? NULL : calloc(1, sizeof(xencall_handle));
}

int xencall_close(xencall_handle *xcall)
{
    free(xcall);
    return 0;
}

int xencall_fd(xencall_handle *xcall)
{
    (void)xcall;
    return -1;
}

void *xencall_alloc_buffer_pages(xencall_handle *xcall, size_t nr_pages)
{
    void *pages = aligned_alloc(FAKE_PAGE_SIZE, nr_pages * FAKE_PAGE_SIZE);

    (void)xcall;
    if (pages)
        memset(pages, 0, nr_pages * FAKE_PAGE_SIZE);
    return pages;
}

void xencall_free_buffer_pages(xencall_handle *xcall, void *p, size_t nr_pages)
{
    (void)xcall;
    (void)nr_pages;
    free(p);
}

void *xencall_alloc_buffer(xencall_handle *xcall, size_t size)
{
    (void)xcall;
    return aligned_alloc(FAKE_PAGE_SIZE, (size + FAKE_PAGE_SIZE - 1) / FAKE_PAGE_SIZE * FAKE_PAGE_SIZE);
}

void xencall_free_buffer(xencall_handle *xcall, void *p)
{
    (void)xcall;
    free(p);
}

int xencall_buffers_never_fault(xencall_handle *xcall)
{
    (void)xcall;
    return 1;
}

static long version(unsigned int cmd, void *arg)
{
    int fault = fake_begin("version");

    if (fault)
        return fake_end("version", -fault, "cmd=%u", cmd);
    switch (cmd) {
    case XENVER_version:
        return fake_end("version", VERSION, "cmd=%u", cmd);
    case XENVER_extraversion:
        memset(arg, 0, sizeof(xen_extraversion_t));
        memcpy(arg, ".7-fake", 8);
        return fake_end("version", 0, "cmd=%u", cmd);
    case XENVER_pagesize:
        return fake_end("version", FAKE_PAGE_SIZE, "cmd=%u", cmd);
    default:
        return fake_end("version", -ENOSYS, "cmd=%u", cmd);
    }
}

static long shutdown_domain(struct fake_host *host, unsigned int cmd, const sched_remote_shutdown_t *arg)
{
    long rc;

    if (cmd != SCHEDOP_remote_shutdown)
        return fake_end("sched_op", -ENOSYS, "cmd=%u", cmd);
    rc = -fake_begin("shutdown");
    if (!rc && arg->domain_id != host->domain->domid)
        rc = -ESRCH;
    if (!rc) {
        fake_lock(host);
        host->domain->shutdown = 1;
        host->domain->shutdown_reason = arg->reason;
        fake_unlock(host);
    }
    return fake_end("shutdown", rc, "reason=%u", arg->reason);
}

static long single(struct fake_host *host, unsigned int op, unsigned int cmd, void *arg)
{
    switch (op) {
    case __HYPERVISOR_xen_version:
        return version(cmd, arg);
    case __HYPERVISOR_domctl:
        return fake_domctl(host, arg);
    case __HYPERVISOR_sysctl:
        return fake_sysctl(host, arg);
    case __HYPERVISOR_memory_op:
        return fake_memory_op(host, cmd, arg);
    case __HYPERVISOR_hvm_op:
        return fake_hvm_op(host, cmd, arg);
    case __HYPERVISOR_sched_op:
        return shutdown_domain(host, cmd, arg);
    default:
        return fake_end("hypercall", -ENOSYS, "op=%u", op);
    }
}

/* libxenctrl wraps a memory_op in a multicall of one when its result may not fit an int. Results are -errno there. */
static long multicall(struct fake_host *host, multicall_entry_t *entries, uint64_t count)
{
    uint64_t i;
    long rc;

    for (i = 0; i < count; i++) {
        rc = single(host, (unsigned int)entries[i].op, (unsigned int)entries[i].args[0], (void *)entries[i].args[1]);
        entries[i].result = (xen_ulong_t)(rc < 0 ? -errno : rc);
    }
    return 0;
}

static long hypercall(unsigned int op, uint64_t arg1, uint64_t arg2)
{
    struct fake_host *host = fake_host();

    if (op == __HYPERVISOR_multicall)
        return multicall(host, (void *)arg1, arg2);
    if (op == __HYPERVISOR_domctl || op == __HYPERVISOR_sysctl)
        return single(host, op, 0, (void *)arg1);    /* their one argument is the pointer */
    return single(host, op, (unsigned int)arg1, (void *)arg2);
}

int xencall0(xencall_handle *xcall, unsigned int op)
{
    (void)xcall;
    return (int)hypercall(op, 0, 0);
}

int xencall1(xencall_handle *xcall, unsigned int op, uint64_t arg1)
{
    (void)xcall;
    return (int)hypercall(op, arg1, 0);
}

long xencall2L(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2)
{
    (void)xcall;
    return hypercall(op, arg1, arg2);
}

int xencall2(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2)
{
    return (int)xencall2L(xcall, op, arg1, arg2);
}

/* Nothing that saves or restores makes a hypercall of three and more arguments. */
static int too_many(unsigned int op)
{
    return (int)fake_end("hypercall", -ENOSYS, "op=%u", op);
}

int xencall3(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2, uint64_t arg3)
{
    (void)xcall, (void)arg1, (void)arg2, (void)arg3;
    return too_many(op);
}

int xencall4(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2, uint64_t arg3, uint64_t arg4)
{
    (void)xcall, (void)arg1, (void)arg2, (void)arg3, (void)arg4;
    return too_many(op);
}

int xencall5(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2, uint64_t arg3, uint64_t arg4,
             uint64_t arg5)
{
    (void)xcall, (void)arg1, (void)arg2, (void)arg3, (void)arg4, (void)arg5;
    return too_many(op);
}
