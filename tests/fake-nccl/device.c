/* The part of the CUDA driver that Myriad's collectives touch, on host memory: streams are threads, a device pointer is
 * a host pointer, and the one kernel that may be launched is shards_sum_f32. */
#include "fake.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALISED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500,
       NOT_READY = 600, LAUNCH_FAILED = 719 };

struct item {
    work run;
    void *argument;
    struct item *next;
};

struct stream {
    pthread_t thread;
    pthread_mutex_t turn;
    pthread_cond_t changed;
    struct item *first, *last;
    unsigned long given, done;
    bool ending;
};

struct event {
    struct stream *stream;
    unsigned long at;
};

atomic_bool fake_device_failed;
static bool initialised;
static char contexts[64]; /* the address of element i is the primary context of device i */
static __thread void *current;

static void *run_stream(void *argument) {
    struct stream *stream = argument;
    pthread_mutex_lock(&stream->turn);
    for (;;) {
        while (!stream->first && !stream->ending) pthread_cond_wait(&stream->changed, &stream->turn);
        struct item *item = stream->first;
        if (!item) break;
        stream->first = item->next;
        pthread_mutex_unlock(&stream->turn);
        item->run(item->argument);
        free(item->argument);
        free(item);
        pthread_mutex_lock(&stream->turn);
        stream->done++;
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->turn);
    return NULL;
}

static struct stream *new_stream(void) {
    struct stream *stream = calloc(1, sizeof *stream);
    pthread_mutex_init(&stream->turn, NULL);
    pthread_cond_init(&stream->changed, NULL);
    pthread_create(&stream->thread, NULL, run_stream, stream);
    return stream;
}

static struct stream *default_stream;
static void make_default_stream(void) { default_stream = new_stream(); }

static struct stream *real(struct stream *stream) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (stream) return stream;
    pthread_once(&once, make_default_stream);
    return default_stream;
}

void fake_give(struct stream *stream, work run, void *argument) {
    stream = real(stream);
    struct item *item = malloc(sizeof *item);
    *item = (struct item){run, argument, NULL};
    pthread_mutex_lock(&stream->turn);
    if (stream->first) stream->last->next = item;
    else stream->first = item;
    stream->last = item;
    stream->given++;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->turn);
}

bool fake_has_context(void) { return current; }

static int devices(void) {
    const char *said = getenv("FAKE_NCCL_DEVICES");
    return said ? atoi(said) : 4;
}

#define IN_CONTEXT do { if (!initialised) return NOT_INITIALISED; if (!current) return INVALID_CONTEXT; } while (0)
#define OF_DEVICE(d) do { if (!initialised) return NOT_INITIALISED; if ((d) < 0 || (d) >= devices()) return INVALID_DEVICE; } while (0)

EXPORT int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (devices() == 0) return 100; /* CUDA_ERROR_NO_DEVICE, as the real one */
    initialised = true;
    return SUCCESS;
}
EXPORT int cuDriverGetVersion(int *version) {
    const char *said = getenv("FAKE_NCCL_CUDA");
    *version = said ? atoi(said) : 13000;
    return SUCCESS;
}
EXPORT int cuGetErrorName(int code, const char **name) {
    *name = code == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : code == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_OF_THE_FAKE";
    return SUCCESS;
}
EXPORT int cuDeviceGetCount(int *count) {
    if (!initialised) return NOT_INITIALISED;
    *count = devices();
    return SUCCESS;
}
EXPORT int cuDeviceGet(int *device, int ordinal) { OF_DEVICE(ordinal); *device = ordinal; return SUCCESS; }
EXPORT int cuDeviceGetName(char *name, int capacity, int device) {
    OF_DEVICE(device);
    snprintf(name, (size_t)capacity, "Fake GPU");
    return SUCCESS;
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device) { OF_DEVICE(device); *bytes = (size_t)16 << 30; return SUCCESS; }
EXPORT int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    OF_DEVICE(device);
    memset(uuid, 0xfa, 16);
    uuid[15] = (unsigned char)device;
    return SUCCESS;
}
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    OF_DEVICE(device);
    *value = attribute == 75 ? 9 : 0; /* compute capability 9.0 */
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { OF_DEVICE(device); *context = &contexts[device]; return SUCCESS; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) { OF_DEVICE(device); return SUCCESS; }
EXPORT int cuCtxSetCurrent(void *context) { current = context; return SUCCESS; }

EXPORT int cuStreamCreate(struct stream **stream, unsigned flags) {
    IN_CONTEXT;
    if (flags > 1) return INVALID_VALUE;
    *stream = new_stream();
    return SUCCESS;
}
EXPORT int cuStreamDestroy_v2(struct stream *stream) {
    IN_CONTEXT;
    pthread_mutex_lock(&stream->turn);
    stream->ending = true; /* what it was given still runs, as with the real one */
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->turn);
    return SUCCESS;
}
EXPORT int cuStreamQuery(struct stream *stream) {
    IN_CONTEXT;
    if (fake_device_failed) return LAUNCH_FAILED;
    stream = real(stream);
    pthread_mutex_lock(&stream->turn);
    bool done = stream->done == stream->given;
    pthread_mutex_unlock(&stream->turn);
    return done ? SUCCESS : NOT_READY;
}
EXPORT int cuEventCreate(struct event **event, unsigned flags) {
    IN_CONTEXT;
    if (flags != 2) return INVALID_VALUE; /* CU_EVENT_DISABLE_TIMING: Myriad never times by events */
    *event = calloc(1, sizeof **event);
    return SUCCESS;
}
EXPORT int cuEventDestroy_v2(struct event *event) { free(event); return SUCCESS; }
EXPORT int cuEventRecord(struct event *event, struct stream *stream) {
    IN_CONTEXT;
    stream = real(stream);
    pthread_mutex_lock(&stream->turn);
    *event = (struct event){stream, stream->given};
    pthread_mutex_unlock(&stream->turn);
    return SUCCESS;
}
static void wait_event(void *argument) {
    struct event *event = argument;
    pthread_mutex_lock(&event->stream->turn);
    while (event->stream->done < event->at) pthread_cond_wait(&event->stream->changed, &event->stream->turn);
    pthread_mutex_unlock(&event->stream->turn);
}
EXPORT int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    IN_CONTEXT;
    if (flags || !event->stream) return INVALID_VALUE;
    struct event *copy = malloc(sizeof *copy);
    *copy = *event; /* later records of the event do not move this wait */
    fake_give(stream, wait_event, copy);
    return SUCCESS;
}

EXPORT int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    IN_CONTEXT;
    if (!bytes) return INVALID_VALUE;
    void *memory = malloc(bytes);
    memset(memory, 0x7f, bytes); /* large NaN-free garbage: what is read unwritten shows */
    *address = (uint64_t)(uintptr_t)memory;
    return SUCCESS;
}
EXPORT int cuMemFree_v2(uint64_t address) { IN_CONTEXT; free((void *)(uintptr_t)address); return SUCCESS; }

EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    IN_CONTEXT;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return SUCCESS;
}
EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    IN_CONTEXT;
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return SUCCESS;
}

struct fill {
    void *to;
    size_t bytes;
};
static void run_zero(void *argument) {
    struct fill *fill = argument;
    memset(fill->to, 0, fill->bytes);
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, struct stream *stream) {
    IN_CONTEXT;
    if (value) return INVALID_VALUE;
    struct fill *fill = malloc(sizeof *fill);
    *fill = (struct fill){(void *)(uintptr_t)to, bytes};
    fake_give(stream, run_zero, fill);
    return SUCCESS;
}

/* The twin of kernels/cu/shards.cu: total = ((p0 + p1) + p2) + ..., after total itself if `add`. */
#define MAX_PARTS 16
struct sum {
    float *total;
    const float *parts[MAX_PARTS];
    uint32_t num_parts, add;
    uint64_t n;
};
static char sum_kernel;

static void run_sum(void *argument) {
    struct sum *sum = argument;
    for (uint64_t i = 0; i < sum->n; i++) {
        float total = sum->add ? sum->total[i] : sum->parts[0][i];
        for (uint32_t p = sum->add ? 0 : 1; p < sum->num_parts; p++) total += sum->parts[p][i];
        sum->total[i] = total;
    }
}
EXPORT int cuModuleLoadData(void **module, const void *image) {
    IN_CONTEXT;
    if (!image) return INVALID_VALUE;
    *module = contexts;
    return SUCCESS;
}
EXPORT int cuModuleGetFunction(void **function, void *module, const char *name) {
    IN_CONTEXT;
    if (module != contexts || strcmp(name, "shards_sum_f32")) return NOT_FOUND;
    *function = &sum_kernel;
    return SUCCESS;
}
EXPORT int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, struct stream *stream, void **arguments, void **extra) {
    IN_CONTEXT;
    struct sum *sum = malloc(sizeof *sum);
    memcpy(&sum->total, arguments[0], sizeof sum->total);
    memcpy(&sum->num_parts, arguments[1], sizeof sum->num_parts);
    memcpy(&sum->add, arguments[2], sizeof sum->add);
    memcpy(&sum->n, arguments[3], sizeof sum->n);
    for (int p = 0; p < MAX_PARTS; p++) memcpy(&sum->parts[p], arguments[4 + p], sizeof sum->parts[p]);
    bool fits = function == &sum_kernel && gy == 1 && gz == 1 && by == 1 && bz == 1 && !shared && !extra && gx > 0 && bx == 256;
    if (!fits || !sum->num_parts || sum->num_parts > MAX_PARTS) {
        free(sum);
        return INVALID_VALUE;
    }
    fake_give(stream, run_sum, sum);
    return SUCCESS;
}
