/* Who uses a GPU: `PID:BYTES[:GPU_INSTANCE[:COMPUTE_INSTANCE]] ...`; `-` for bytes that the driver does not tell. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "double.h"

#define PROCESSES_MAX 128
#define TEXT_MAX 8192

static nvmlReturn_t listed(const struct call *call, const char *key, nvmlProcessInfo_t *found, unsigned int *count) {
    char text[TEXT_MAX], *state = NULL;
    CHECK(text_value(call, text, sizeof text, "%s", key));
    *count = 0;
    for (char *word = strtok_r(text, " ", &state); word != NULL && *count < PROCESSES_MAX;
         word = strtok_r(NULL, " ", &state)) {
        char bytes[32] = "";
        nvmlProcessInfo_t one = {0, 0, 0xFFFFFFFF, 0xFFFFFFFF};
        if (sscanf(word, "%u:%31[^:]:%u:%u", &one.pid, bytes, &one.gpuInstanceId, &one.computeInstanceId) < 2)
            continue;
        one.usedGpuMemory = bytes[0] == '-' ? (unsigned long long)NVML_VALUE_NOT_AVAILABLE : strtoull(bytes, NULL, 10);
        found[(*count)++] = one;
    }
    return NVML_SUCCESS;
}

/* Asked with room for none it tells how many there are, and INSUFFICIENT_SIZE. */
#define PROCESSES(name, type, copy, key)                                                             \
    nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *infos) {                       \
        ENTER(name, device);                                                                         \
        nvmlProcessInfo_t found[PROCESSES_MAX];                                                      \
        unsigned int room = *count;                                                                  \
        CHECK(listed(&call, key, found, count));                                                     \
        if (room < *count || (infos == NULL && *count > 0))                                          \
            return NVML_ERROR_INSUFFICIENT_SIZE;                                                     \
        for (unsigned int i = 0; i < *count; i++)                                                    \
            infos[i] = copy;                                                                         \
        return NVML_SUCCESS;                                                                         \
    }
#define FIRST (nvmlProcessInfo_v1_t){found[i].pid, found[i].usedGpuMemory}
PROCESSES(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t, FIRST, "processes")
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, found[i], "processes")
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_t, found[i], "processes")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t, FIRST, "processes.graphics")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t, found[i], "processes.graphics")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t, found[i], "processes.graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t, FIRST, "processes.mps")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, found[i], "processes.mps")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t, found[i], "processes.mps")

/* `PID:SM:MEMORY:ENCODER:DECODER ...` in percent. Without any: success and none, on which pynvml raises. */
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                             unsigned int *count, unsigned long long last_seen_us) {
    ENTER(nvmlDeviceGetProcessUtilization, device);
    char text[TEXT_MAX], *state = NULL;
    unsigned int room = samples == NULL ? 0 : *count;
    CHECK(text_value(&call, text, sizeof text, "process_utilization"));
    unsigned long long now = now_us();
    *count = 0;
    if (last_seen_us >= now)
        return NVML_ERROR_NOT_FOUND;
    for (char *word = strtok_r(text, " ", &state); word != NULL; word = strtok_r(NULL, " ", &state)) {
        nvmlProcessUtilizationSample_t one = {.timeStamp = now};
        if (sscanf(word, "%u:%u:%u:%u:%u", &one.pid, &one.smUtil, &one.memUtil, &one.encUtil, &one.decUtil) != 5)
            continue;
        if (*count < room)
            samples[*count] = one;
        ++*count;
    }
    return *count > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
