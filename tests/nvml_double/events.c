/* Events: lines of `GPU XID [TYPE [GPU_INSTANCE COMPUTE_INSTANCE]]`, appended to the file `events`. A set sees what comes after
   it was made; a wait sleeps on inotify, so that it costs nothing while nothing happens. */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "double.h"

/* A change that inotify does not tell (a freed set, a file on a strange file system) is seen after this. */
#define LOOK_AGAIN_MS 500

struct nvmlEventSet_st {
    char path[PATH_MAX];
    int watch;
    off_t offset;
    unsigned long long types[GPUS_MAX];
};

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    ENTER_SYSTEM(nvmlEventSetCreate);
    struct nvmlEventSet_st *made = calloc(1, sizeof *made);
    struct stat status;
    char folder[PATH_MAX];
    if (made == NULL || !beside_scenario(made->path, sizeof made->path, "events") ||
        !beside_scenario(folder, sizeof folder, "")) {
        free(made);
        return NVML_ERROR_MEMORY;
    }
    made->offset = stat(made->path, &status) == 0 ? status.st_size : 0;
    made->watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (made->watch >= 0)
        inotify_add_watch(made->watch, folder, IN_MODIFY | IN_CREATE | IN_MOVED_TO);
    *set = made;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    ENTER_SYSTEM(nvmlEventSetFree);
    if (set->watch >= 0)
        close(set->watch);
    free(set);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    ENTER(nvmlDeviceGetSupportedEventTypes, device);
    return ull_value(&call, types, "events_supported");
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    ENTER(nvmlDeviceRegisterEvents, device);
    unsigned long long supported;
    CHECK(ull_value(&call, &supported, "events_supported"));
    if ((types & ~supported) != 0)
        return NVML_ERROR_NOT_SUPPORTED;
    set->types[call.slot] |= types;
    return NVML_SUCCESS;
}

/* The next event that somebody registered for; false when the file holds none. */
static bool next_event(nvmlEventSet_t set, nvmlEventData_t *data) {
    char line[128];
    FILE *file = fopen(set->path, "re");
    bool found = false;
    if (file == NULL)
        return false;
    fseeko(file, set->offset, SEEK_SET);
    while (!found && fgets(line, sizeof line, file) != NULL && strchr(line, '\n') != NULL) {
        unsigned int slot, instance = 0xFFFFFFFF, compute = 0xFFFFFFFF;
        unsigned long long code, type = nvmlEventTypeXidCriticalError;
        set->offset = ftello(file);
        if (sscanf(line, "%u %llu %llu %u %u", &slot, &code, &type, &instance, &compute) < 2 || slot >= GPUS_MAX)
            continue;
        found = (set->types[slot] & type) != 0;
        if (found)
            *data = (nvmlEventData_t){handle_of((int)slot, NO_MIG), type, code, instance, compute};
    }
    fclose(file);
    return found;
}

/* nvml.h: waiting fails when a GPU of the set has fallen off the bus. */
static bool has_lost_gpu(nvmlEventSet_t set) {
    for (int slot = 0; slot < GPUS_MAX; slot++)
        if (set->types[slot] != 0 && is_set(slot, "lost"))
            return true;
    return false;
}

static long long monotonic_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000LL;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    long long end_ms = monotonic_ms() + timeout_ms;
    char drained[4096];
    ENTER_SYSTEM(nvmlEventSetWait_v2);
    for (;;) {
        if (next_event(set, data))
            return NVML_SUCCESS;
        if (has_lost_gpu(set))
            return NVML_ERROR_GPU_IS_LOST;
        long long left_ms = end_ms - monotonic_ms();
        if (left_ms <= 0)
            return NVML_ERROR_TIMEOUT;
        struct pollfd watch = {set->watch, POLLIN, 0};
        poll(&watch, 1, (int)(left_ms < LOOK_AGAIN_MS ? left_ms : LOOK_AGAIN_MS));
        if (watch.revents != 0) {
            while (read(set->watch, drained, sizeof drained) > 0)
                ;
            look_at_once();
        }
        read_changed_scenario();
        CHECK(still_waiting(FN_nvmlEventSetWait_v2));
    }
}
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
    __attribute__((alias("nvmlEventSetWait_v2")));
