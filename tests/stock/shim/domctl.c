/* The domctl, sysctl and hvm_op hypercalls that saving and restoring a domain needs. */
#include "fakexen.h"

#include <errno.h>
#include <string.h>

#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/sysctl.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xen/hvm/save.h>

#define MAX_TYPES 1024          /* of one getpageframeinfo3 */
#define LOG_DIRTY_LEAF 32768    /* frames in one leaf of Xen's log-dirty tree */

_Static_assert(FAKE_PARAMS == HVM_NR_PARAMS, "another Xen release has other HVM parameters");
_Static_assert(sizeof(struct fake_leaf) == sizeof(xen_cpuid_leaf_t), "CPUID leaf");
_Static_assert(sizeof(struct fake_msr) == sizeof(xen_msr_entry_t), "MSR entry");

static void describe(const struct fake_domain *d, struct xen_domctl_getdomaininfo *info)
{
    memset(info, 0, sizeof(*info));
    info->domain = (domid_t)d->domid;
    info->flags = (d->hvm ? XEN_DOMINF_hvm_guest | XEN_DOMINF_hap : 0) | (d->pause_count ? XEN_DOMINF_paused : 0) |
                  (d->shutdown ? XEN_DOMINF_shutdown | d->shutdown_reason << XEN_DOMINF_shutdownshift : 0);
    info->tot_pages = d->tot_pages;
    info->max_pages = d->max_pages;
    info->nr_online_vcpus = 1;
    info->gpaddr_bits = 39;
}

/*
 * Bits behind the last frame asked for, in the leaf of the log-dirty tree that CLEAN touches last, are lost: Xen
 * clears whole leaves. The bitmap is copied in whole bytes.
 */
static void clean(struct fake_host *host, struct xen_domctl_shadow_op *op)
{
    struct fake_domain *d = host->domain;
    uint64_t bytes = (op->pages + 7) / 8, known = (d->frame_limit + 7) / 8;
    uint64_t copied = bytes < known ? bytes : known, leaves;

    op->stats.fault_count = 0;
    op->stats.dirty_count = (uint32_t)d->dirty_count;
    if (op->dirty_bitmap.p) {
        memcpy(op->dirty_bitmap.p, host->dirty, copied);
        memset(op->dirty_bitmap.p + copied, 0, bytes - copied);
    }
    if (op->op != XEN_DOMCTL_SHADOW_OP_CLEAN)
        return;
    leaves = (op->pages + LOG_DIRTY_LEAF - 1) / LOG_DIRTY_LEAF * (LOG_DIRTY_LEAF / 8);
    memset(host->dirty, 0, leaves < known ? leaves : known);
    d->dirty_count = 0;
}

static long shadow_op(struct fake_host *host, struct xen_domctl_shadow_op *op)
{
    struct fake_domain *d = host->domain;
    const char *name;
    long rc;

    switch (op->op) {
    case XEN_DOMCTL_SHADOW_OP_OFF:
        name = "logdirty_off";
        rc = -fake_begin(name);
        if (!rc)
            d->log_dirty = 0;
        return fake_end(name, rc, "mode=%u", op->mode);
    case XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY:
        name = "logdirty_on";
        rc = -fake_begin(name);
        if (!rc && d->log_dirty)
            rc = -EINVAL;
        if (!rc) {
            d->log_dirty = 1;
            d->dirty_count = 0;
            memset(host->dirty, 0, (d->frame_limit + 7) / 8);
        }
        return fake_end(name, rc, "mode=%u", op->mode);
    case XEN_DOMCTL_SHADOW_OP_CLEAN:
    case XEN_DOMCTL_SHADOW_OP_PEEK:
        name = op->op == XEN_DOMCTL_SHADOW_OP_CLEAN ? "clean" : "peek";
        rc = -fake_begin(name);
        if (!rc && op->mode & ~XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL)
            rc = -EINVAL;
        if (!rc)
            clean(host, op);
        return fake_end(name, rc, "pages=%llu mode=%u dirty=%u on=%u", (unsigned long long)op->pages, op->mode,
                        op->stats.dirty_count, d->log_dirty);
    default:
        return fake_end("shadow_op", -EINVAL, "op=%u", op->op);
    }
}

static long frame_types(struct fake_host *host, struct xen_domctl_getpageframeinfo3 *info)
{
    static const xen_pfn_t types[] = {
        [P2M_HOLE] = XEN_DOMCTL_PFINFO_XTAB,
        [P2M_RAM] = XEN_DOMCTL_PFINFO_NOTAB,
        [P2M_SPECIAL] = XEN_DOMCTL_PFINFO_XTAB,
        [P2M_BROKEN] = XEN_DOMCTL_PFINFO_BROKEN,
    };
    long rc = -fake_begin("types");
    xen_pfn_t *array = info->array.p, first = info->num ? array[0] : 0;
    uint64_t i;

    if (!rc && info->num > MAX_TYPES)
        rc = -E2BIG;
    for (i = 0; !rc && i < info->num; i++)
        array[i] = array[i] < host->domain->frame_limit ? types[host->p2m[array[i]]] : XEN_DOMCTL_PFINFO_XTAB;
    return fake_end("types", rc, "num=%llu first=%llu", (unsigned long long)info->num, (unsigned long long)first);
}

static long get_context(struct fake_host *host, struct xen_domctl_hvmcontext *context)
{
    struct fake_domain *d = host->domain;
    long rc = -fake_begin("get_context");

    if (!rc && !d->hvm)
        rc = -EINVAL;
    if (!rc && context->buffer.p && context->size < d->context_bytes)
        rc = -ENOSPC;
    if (!rc && context->buffer.p)
        memcpy(context->buffer.p, d->context, d->context_bytes);
    if (!rc)
        context->size = d->context_bytes;
    return fake_end("get_context", rc, "size=%u query=%d", context->size, !context->buffer.p);
}

/* The blob is a chain of {u16 type, u16 instance, u32 length, body}: first HEADER, last END without a body. */
static int context_is_sound(const uint8_t *data, uint32_t size)
{
    const struct hvm_save_descriptor *entry;
    uint32_t at = 0;

    while (size - at >= sizeof(*entry)) {
        entry = (const void *)(data + at);
        if (at == 0 && entry->typecode != HVM_SAVE_CODE(HEADER))
            return 0;
        if (entry->typecode == HVM_SAVE_CODE(END))
            return entry->length == 0 && at > 0;
        if (entry->length > size - at - sizeof(*entry))
            return 0;
        at += (uint32_t)sizeof(*entry) + entry->length;
    }
    return 0;
}

static long set_context(struct fake_host *host, struct xen_domctl_hvmcontext *context)
{
    struct fake_domain *d = host->domain;
    long rc = -fake_begin("set_context");

    if (!rc && (!d->hvm || context->size > FAKE_CONTEXT || !context_is_sound(context->buffer.p, context->size)))
        rc = -EINVAL;
    if (!rc) {
        memcpy(d->context, context->buffer.p, context->size);
        d->context_bytes = context->size;
    }
    return fake_end("set_context", rc, "size=%u", context->size);
}

static long tsc(struct fake_host *host, struct xen_domctl_tsc_info *info, int set)
{
    struct fake_domain *d = host->domain;
    const char *name = set ? "set_tsc" : "get_tsc";
    long rc = -fake_begin(name);

    if (!rc && set) {
        d->tsc_mode = info->tsc_mode;
        d->tsc_khz = info->gtsc_khz;
        d->tsc_incarnation = info->incarnation;
        d->tsc_nsec = info->elapsed_nsec;
    } else if (!rc) {
        info->tsc_mode = d->tsc_mode;
        info->gtsc_khz = d->tsc_khz;
        info->incarnation = d->tsc_incarnation;
        info->elapsed_nsec = d->tsc_nsec;
    }
    return fake_end(name, rc, "mode=%u khz=%u", info->tsc_mode, info->gtsc_khz);
}

static long get_policy(struct fake_host *host, struct xen_domctl_cpu_policy *policy)
{
    struct fake_domain *d = host->domain;
    long rc = -fake_begin("get_policy");

    if (!rc && ((policy->leaves.p && policy->nr_leaves < d->nr_leaves) ||
                (policy->msrs.p && policy->nr_msrs < d->nr_msrs)))
        rc = -ENOBUFS;
    if (!rc && policy->leaves.p)
        memcpy(policy->leaves.p, d->leaves, d->nr_leaves * sizeof(d->leaves[0]));
    if (!rc && policy->msrs.p)
        memcpy(policy->msrs.p, d->msrs, d->nr_msrs * sizeof(d->msrs[0]));
    if (!rc) {
        policy->nr_leaves = d->nr_leaves;
        policy->nr_msrs = d->nr_msrs;
    }
    return fake_end("get_policy", rc, "leaves=%u msrs=%u", policy->nr_leaves, policy->nr_msrs);
}

static long set_policy(struct fake_host *host, struct xen_domctl_cpu_policy *policy)
{
    struct fake_domain *d = host->domain;
    long rc = -fake_begin("set_policy");

    if (!rc && (policy->nr_leaves > FAKE_LEAVES || policy->nr_msrs > FAKE_MSRS))
        rc = -E2BIG;
    if (!rc && policy->nr_leaves) {
        memcpy(d->leaves, policy->leaves.p, policy->nr_leaves * sizeof(d->leaves[0]));
        d->nr_leaves = policy->nr_leaves;
    }
    if (!rc && policy->nr_msrs) {
        memcpy(d->msrs, policy->msrs.p, policy->nr_msrs * sizeof(d->msrs[0]));
        d->nr_msrs = policy->nr_msrs;
    }
    return fake_end("set_policy", rc, "leaves=%u msrs=%u", policy->nr_leaves, policy->nr_msrs);
}

static long change(uint32_t *field, uint32_t value, const char *name, int refused)
{
    long rc = -fake_begin(name);

    if (!rc && refused)
        rc = -EINVAL;
    if (!rc)
        *field = value;
    return fake_end(name, rc, "now=%u", *field);
}

/* The first domain whose number is not below the one asked for, as the hypervisor of 4.17 answers. */
static long domain_info(struct fake_host *host, struct xen_domctl *op)
{
    struct fake_domain *d = host->domain;
    domid_t asked = op->domain;
    long rc = -fake_begin("getdomaininfo");

    if (!rc && (asked > d->domid || d->destroyed))
        rc = -ESRCH;
    if (!rc) {
        describe(d, &op->u.getdomaininfo);
        op->domain = (domid_t)d->domid;
    }
    return fake_end("getdomaininfo", rc, "domid=%u", asked);
}

static long locked_domctl(struct fake_host *host, struct xen_domctl *op)
{
    struct fake_domain *d = host->domain;

    if (op->cmd == XEN_DOMCTL_getdomaininfo)
        return domain_info(host, op);
    if (op->domain != d->domid || d->destroyed)
        return fake_end("domctl", -ESRCH, "cmd=%u domid=%u", op->cmd, op->domain);
    switch (op->cmd) {
    case XEN_DOMCTL_pausedomain:
        return change(&d->pause_count, d->pause_count + 1, "pause", 0);
    case XEN_DOMCTL_unpausedomain:
        return change(&d->pause_count, d->pause_count - 1, "unpause", !d->pause_count);
    case XEN_DOMCTL_resumedomain:
        return change(&d->shutdown, 0, "resume", 0);
    case XEN_DOMCTL_destroydomain:
        return change(&d->destroyed, 1, "destroy", 0);
    case XEN_DOMCTL_shadow_op:
        return shadow_op(host, &op->u.shadow_op);
    case XEN_DOMCTL_getpageframeinfo3:
        return frame_types(host, &op->u.getpageframeinfo3);
    case XEN_DOMCTL_gethvmcontext:
        return get_context(host, &op->u.hvmcontext);
    case XEN_DOMCTL_sethvmcontext:
        return set_context(host, &op->u.hvmcontext);
    case XEN_DOMCTL_gettscinfo:
        return tsc(host, &op->u.tsc_info, 0);
    case XEN_DOMCTL_settscinfo:
        return tsc(host, &op->u.tsc_info, 1);
    case XEN_DOMCTL_get_cpu_policy:
        return get_policy(host, &op->u.cpu_policy);
    case XEN_DOMCTL_set_cpu_policy:
        return set_policy(host, &op->u.cpu_policy);
    default:
        return fake_end("domctl", -ENOSYS, "cmd=%u", op->cmd);
    }
}

long fake_domctl(struct fake_host *host, void *arg)
{
    struct xen_domctl *op = arg;
    long rc;

    if (op->interface_version != XEN_DOMCTL_INTERFACE_VERSION)
        return fake_end("domctl", -EACCES, "version=%u", op->interface_version);
    fake_lock(host);
    rc = locked_domctl(host, op);
    fake_unlock(host);
    return rc;
}

static long domain_list(struct fake_host *host, struct xen_sysctl_getdomaininfolist *list)
{
    struct fake_domain *d = host->domain;
    long rc = -fake_begin("getdomaininfolist");

    list->num_domains = 0;
    if (!rc && list->max_domains && list->first_domain <= d->domid && !d->destroyed) {
        describe(d, list->buffer.p);
        list->num_domains = 1;
    }
    return fake_end("getdomaininfolist", rc, "first=%u", list->first_domain);
}

/* Only the sizes: nothing that saves or restores asks for a policy of the host. */
static long policy_sizes(struct xen_sysctl_cpu_policy *policy)
{
    long rc = -fake_begin("get_policy_size");

    if (!rc && (policy->leaves.p || policy->msrs.p))
        rc = -ENOSYS;
    policy->nr_leaves = FAKE_LEAVES;
    policy->nr_msrs = FAKE_MSRS;
    return fake_end("get_policy_size", rc, "index=%u", policy->index);
}

long fake_sysctl(struct fake_host *host, void *arg)
{
    struct xen_sysctl *op = arg;

    if (op->interface_version != XEN_SYSCTL_INTERFACE_VERSION)
        return fake_end("sysctl", -EACCES, "version=%u", op->interface_version);
    switch (op->cmd) {
    case XEN_SYSCTL_getdomaininfolist:
        return domain_list(host, &op->u.getdomaininfolist);
    case XEN_SYSCTL_get_cpu_policy:
        return policy_sizes(&op->u.cpu_policy);
    default:
        return fake_end("sysctl", -ENOSYS, "cmd=%u", op->cmd);
    }
}

/* Whether a parameter may take a value only once (xen/include/public/hvm/params.h does not say so; 4.17 does). */
static int set_once(uint32_t index)
{
    switch (index) {
    case HVM_PARAM_VIRIDIAN:
    case HVM_PARAM_IOREQ_PFN:
    case HVM_PARAM_BUFIOREQ_PFN:
    case HVM_PARAM_IOREQ_SERVER_PFN:
    case HVM_PARAM_NR_IOREQ_SERVER_PAGES:
    case HVM_PARAM_ALTP2M:
    case HVM_PARAM_MCA_CAP:
        return 1;
    default:
        return 0;
    }
}

long fake_hvm_op(struct fake_host *host, unsigned int cmd, void *arg)
{
    struct fake_domain *d = host->domain;
    struct xen_hvm_param *param = arg;
    int set = cmd == HVMOP_set_param;
    const char *name = set ? "set_param" : "get_param";
    long rc;

    if (cmd != HVMOP_set_param && cmd != HVMOP_get_param)
        return fake_end("hvm_op", -ENOSYS, "cmd=%u", cmd);
    rc = -fake_begin(name);
    if (!rc && param->domid != d->domid)
        rc = -ESRCH;
    if (!rc && (!d->hvm || param->index >= HVM_NR_PARAMS))
        rc = -EINVAL;
    if (!rc && set && set_once(param->index) && d->params[param->index] &&
        d->params[param->index] != param->value)
        rc = -EEXIST;
    if (!rc && set)
        d->params[param->index] = param->value;
    else if (!rc)
        param->value = d->params[param->index];
    return fake_end(name, rc, "index=%u value=%llu", param->index, (unsigned long long)param->value);
}
