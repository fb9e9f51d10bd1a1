/* NCCL 2.30.7's interface, as far as Myriad calls it, with NCCL's rules: a configuration is read as NCCL reads it, a
 * communicator that is busy refuses calls, a non-blocking one is polled, an aborted one must not be used again. Sums go
 * around a ring, so that an all-reduce depends on the number of ranks as the real one's does. */
#include "fake.h"
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ncclSuccess, ncclUnhandledCudaError, ncclSystemError, ncclInternalError, ncclInvalidArgument, ncclInvalidUsage,
       ncclRemoteError, ncclInProgress };
#define NCCL_VERSION_CODE 23007
#define NCCL_API_MAGIC 0xcafebeef
#define UNDEFINED INT_MIN
#define BUSY_MS 3 /* how long a non-blocking call stays in progress */

typedef struct { char internal[128]; } ncclUniqueId;

/* nccl.h of nvidia-nccl-cu13 2.30.7, ncclConfig_v23000. */
struct config {
    size_t size;
    unsigned magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs;
    const char *netName;
    int splitShare, trafficClass;
    const char *commName;
    int collnetEnable, CTAPolicy, shrinkShare, nvlsCTAs, nChannelsPerNetPeer, nvlinkCentricSched, graphUsageMode, numRmaCtx,
        maxP2pPeers, graphStreamOrdering;
};

struct comm {
    int ranks, rank;
    char id[128];
    long collectives;
    struct room *room;
    _Atomic uint64_t busy_until; /* UINT64_MAX while it is being made */
    _Atomic int failed;
    atomic_bool aborted;
    pthread_t maker;
    char last_error[256];
};

enum kind { GATHER, SCATTER, REDUCE };
static const char *const kinds[] = {"ncclAllGather", "ncclReduceScatter", "ncclAllReduce"};

struct job {
    struct comm *comm;
    enum kind kind;
    const float *send;
    float *receive;
    size_t count;
    long index;
};

static char global_error[256];
static __thread int depth;
static __thread struct { struct job *job; struct stream *stream; } grouped[256];
static __thread int num_grouped;

static int refuse(struct comm *comm, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(comm ? comm->last_error : global_error, 256, format, arguments);
    va_end(arguments);
    fake_log("error %d: %s", code, comm ? comm->last_error : global_error);
    return code;
}

/* A collective that never ends by itself. */
static void hang(struct comm *comm) {
    while (!comm->aborted) fake_sleep_ms(2);
}

static bool same_call(struct job *job) {
    struct comm *comm = job->comm;
    uint64_t mine[4] = {job->kind, job->count, (uint64_t)job->index, 0};
    memcpy(fake_said(comm->room, comm->rank), mine, sizeof mine);
    if (!fake_meet(comm->room, &comm->aborted)) return false;
    for (int r = 0; r < comm->ranks; r++) {
        if (memcmp(fake_said(comm->room, r), mine, sizeof mine)) {
            /* The real one would hang or mix the data up; a test wants to see it. */
            comm->failed = refuse(comm, ncclInvalidUsage, "rank %d is in another collective", r);
            hang(comm);
            return false;
        }
    }
    return fake_meet(comm->room, &comm->aborted);
}

/* What every rank brings of elements [at, at + n) for `to` lies in the slots afterwards. */
static bool bring(struct job *job, size_t at, size_t n) {
    memcpy(fake_slot(job->comm->room, job->comm->rank), job->send + at, n * sizeof(float));
    return fake_meet(job->comm->room, &job->comm->aborted);
}

/* Ring order: the sum of a segment starts one rank further with every segment. */
static void add_slots(struct job *job, float *sums, size_t at, size_t n, size_t segment_len) {
    int ranks = job->comm->ranks;
    for (size_t i = 0; i < n; i++) {
        int start = (int)((at + i) / segment_len % (size_t)ranks) + 1;
        float sum = fake_slot(job->comm->room, start % ranks)[i];
        for (int r = 1; r < ranks; r++) sum += fake_slot(job->comm->room, (start + r) % ranks)[i];
        sums[i] = sum;
    }
}

static void run_job(void *argument) {
    struct job *job = argument;
    struct comm *comm = job->comm;
    long number;
    if (fake_fault("slow", comm->rank, &number)) fake_sleep_ms(number);
    if (fake_fault("stuck", comm->rank, &number) && number == job->index) return hang(comm);
    if (fake_fault("async", comm->rank, &number) && number == job->index) {
        comm->failed = refuse(comm, ncclRemoteError, "the link to rank %d went down", (comm->rank + 1) % comm->ranks);
        return hang(comm);
    }
    if (comm->aborted || !same_call(job)) return;
    size_t ranks = (size_t)comm->ranks, whole = job->kind == SCATTER ? job->count * ranks : job->count;
    size_t segment = (whole + ranks - 1) / ranks, end;
    for (size_t at = 0; at < whole; at = end) {
        end = at + SLOT_FLOATS < whole ? at + SLOT_FLOATS : whole;
        size_t owner = at / job->count;
        if (job->kind == SCATTER && end > (owner + 1) * job->count) end = (owner + 1) * job->count;
        size_t n = end - at;
        if (!bring(job, at, n)) return;
        if (job->kind == GATHER)
            for (size_t r = 0; r < ranks; r++)
                memcpy(job->receive + r * job->count + at, fake_slot(comm->room, (int)r), n * sizeof(float));
        if (job->kind == REDUCE) add_slots(job, job->receive + at, at, n, segment);
        if (job->kind == SCATTER && owner == (size_t)comm->rank)
            add_slots(job, job->receive + (at - owner * job->count), at, n, segment);
        if (!fake_meet(comm->room, &comm->aborted)) return;
    }
    /* After the ranks have met: the others have what they need of this job, however soon this one gives up. */
    if (fake_fault("device", comm->rank, &number) && number == job->index) fake_device_failed = true;
}

static int state(struct comm *comm) {
    if (comm->failed) return comm->failed;
    return fake_now_ms() < comm->busy_until ? ncclInProgress : ncclSuccess;
}

static void send_off(void) {
    for (int i = 0; i < num_grouped; i++) {
        grouped[i].job->comm->busy_until = fake_now_ms() + BUSY_MS;
        fake_give(grouped[i].stream, run_job, grouped[i].job);
    }
    num_grouped = 0;
}

static int collective(enum kind kind, const void *send, void *receive, size_t count, int type, int op, struct comm *comm,
                      struct stream *stream) {
    long index = comm->collectives++, number;
    fake_log("%s count=%zu%s", kinds[kind], count, depth ? " grouped" : "");
    if (comm->aborted) abort(); /* use after ncclCommAbort */
    if (state(comm) != ncclSuccess)
        return refuse(comm, ncclInvalidArgument, "Attempt to use communicator before the previous operation returned ncclSuccess");
    if (!fake_has_context()) return refuse(comm, ncclUnhandledCudaError, "no current context");
    if (type != 7 || op != 0 || !send || !receive) return refuse(comm, ncclInvalidArgument, "only sums of ncclFloat32");
    if (fake_fault("refused", comm->rank, &number) && number == index)
        return refuse(comm, ncclInvalidUsage, "refused as the test asked");
    if (num_grouped == 256) return refuse(comm, ncclInvalidUsage, "too many calls in one group");
    struct job *job = malloc(sizeof *job);
    *job = (struct job){comm, kind, send, receive, count, index};
    grouped[num_grouped].job = job;
    grouped[num_grouped++].stream = stream;
    if (depth) return ncclSuccess;
    send_off();
    return ncclInProgress;
}

EXPORT int ncclAllGather(const void *send, void *receive, size_t count, int type, struct comm *comm, struct stream *stream) {
    return collective(GATHER, send, receive, count, type, 0, comm, stream);
}
EXPORT int ncclReduceScatter(const void *send, void *receive, size_t count, int type, int op, struct comm *comm, struct stream *stream) {
    return collective(SCATTER, send, receive, count, type, op, comm, stream);
}
EXPORT int ncclAllReduce(const void *send, void *receive, size_t count, int type, int op, struct comm *comm, struct stream *stream) {
    return collective(REDUCE, send, receive, count, type, op, comm, stream);
}
EXPORT int ncclGroupStart(void) { fake_log("ncclGroupStart"); depth++; return ncclSuccess; }
EXPORT int ncclGroupEnd(void) {
    fake_log("ncclGroupEnd");
    if (!depth) return refuse(NULL, ncclInvalidUsage, "ncclGroupEnd: not in a group call.");
    int grouped_now = num_grouped;
    if (--depth == 0) send_off();
    return depth == 0 && grouped_now ? ncclInProgress : ncclSuccess;
}

EXPORT int ncclGetVersion(int *version) { *version = NCCL_VERSION_CODE; return ncclSuccess; }
EXPORT int ncclGetUniqueId(ncclUniqueId *id) {
    fake_log("ncclGetUniqueId");
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "fake-nccl-%d-%llu", getpid(), (unsigned long long)fake_now_ms());
    id->internal[127] = 0x5a; /* all 128 bytes must arrive */
    return ncclSuccess;
}

static void *make(void *argument) {
    struct comm *comm = argument;
    if (fake_fault("init_later", comm->rank, NULL)) {
        fake_sleep_ms(20);
        comm->failed = refuse(comm, ncclInternalError, "no topology, as the test asked");
        return NULL;
    }
    if (fake_fault("absent", comm->rank, NULL)) hang(comm);
    comm->room = fake_enter(comm->id, comm->ranks, comm->rank, &comm->aborted);
    if (comm->room) comm->busy_until = 0;
    return NULL;
}

EXPORT int ncclCommInitRankConfig(struct comm **out, int ranks, ncclUniqueId id, int rank, struct config *given) {
    struct config config = {.blocking = UNDEFINED, .cgaClusterSize = UNDEFINED, .minCTAs = UNDEFINED, .maxCTAs = UNDEFINED};
    fake_rank = rank;
    *out = NULL;
    memcpy(&config, given, given->size > sizeof config ? sizeof config : given->size);
    fake_log("ncclCommInitRankConfig ranks=%d rank=%d config size=%zu version=%u blocking=%d", ranks, rank, config.size,
             config.version, config.blocking);
    if (config.magic != NCCL_API_MAGIC) return refuse(NULL, ncclInvalidArgument, "ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER");
    if (config.version < 21400) config.blocking = UNDEFINED;
    if (config.version < 21700) config.cgaClusterSize = config.minCTAs = config.maxCTAs = UNDEFINED;
    if (config.cgaClusterSize != UNDEFINED || config.minCTAs != UNDEFINED || config.maxCTAs != UNDEFINED)
        return refuse(NULL, ncclInvalidArgument, "Invalid config attribute value");
    if (config.blocking != 0) return refuse(NULL, ncclInvalidUsage, "the fake makes non-blocking communicators only");
    if (!fake_has_context()) return refuse(NULL, ncclUnhandledCudaError, "no current context");
    if (ranks < 1 || ranks > MAX_RANKS || rank < 0 || rank >= ranks || id.internal[127] != 0x5a)
        return refuse(NULL, ncclInvalidArgument, "rank %d of %d, or a damaged unique id", rank, ranks);
    if (fake_fault("init", rank, NULL)) return refuse(NULL, ncclSystemError, "no socket, as the test asked");
    struct comm *comm = calloc(1, sizeof *comm);
    comm->ranks = ranks;
    comm->rank = rank;
    comm->busy_until = UINT64_MAX;
    memcpy(comm->id, id.internal, sizeof comm->id - 1);
    pthread_create(&comm->maker, NULL, make, comm);
    *out = comm;
    return ncclInProgress;
}

EXPORT int ncclCommGetAsyncError(struct comm *comm, int *error) {
    if (comm->aborted) abort();
    *error = state(comm);
    return ncclSuccess;
}
EXPORT const char *ncclGetLastError(struct comm *comm) { return comm && comm->last_error[0] ? comm->last_error : global_error; }
EXPORT const char *ncclGetErrorString(int code) {
    static const char *const texts[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress"};
    return code >= 0 && code < 8 ? texts[code] : "unknown result code";
}
EXPORT int ncclCommAbort(struct comm *comm) {
    fake_log("ncclCommAbort");
    if (comm->aborted) abort();
    comm->aborted = true; /* kept: jobs on streams still look at it */
    pthread_join(comm->maker, NULL);
    return ncclSuccess;
}
EXPORT int ncclCommFinalize(struct comm *comm) {
    fake_log("ncclCommFinalize");
    comm->busy_until = fake_now_ms() + BUSY_MS;
    return ncclInProgress;
}
EXPORT int ncclCommDestroy(struct comm *comm) {
    fake_log("ncclCommDestroy");
    if (state(comm) != ncclSuccess) return refuse(comm, ncclInvalidUsage, "destroyed before it was finalised");
    pthread_join(comm->maker, NULL);
    return ncclSuccess;
}
