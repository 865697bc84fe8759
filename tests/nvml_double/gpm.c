/* GPM: rates between two samples; and MIG, whose instances have their own. */
#include <stdlib.h>
#include <string.h>

#include "double.h"

struct nvmlGpmSample_st {
    struct call of;
    unsigned long long at_us; /* 0: never filled */
};

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support) {
    ENTER(nvmlGpmQueryDeviceSupport, device);
    CHECK(check_version(FN_nvmlGpmQueryDeviceSupport, support->version, (unsigned int[]){NVML_GPM_SUPPORT_VERSION}, 1));
    /* A GPU without GPM answers that it has none; it is not an error. */
    if (uint_value(&call, &support->isSupportedDevice, "gpm.supported") != NVML_SUCCESS)
        support->isSupportedDevice = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmQueryIfStreamingEnabled(nvmlDevice_t device, unsigned int *state) {
    ENTER(nvmlGpmQueryIfStreamingEnabled, device);
    return uint_value(&call, state, "gpm.streaming");
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample) {
    ENTER_SYSTEM(nvmlGpmSampleAlloc);
    *sample = calloc(1, sizeof **sample);
    return *sample == NULL ? NVML_ERROR_MEMORY : NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    ENTER_SYSTEM(nvmlGpmSampleFree);
    free(sample);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    ENTER(nvmlGpmSampleGet, device);
    if (!is_set(call.slot, "gpm.supported"))
        return NVML_ERROR_NOT_SUPPORTED;
    *sample = (struct nvmlGpmSample_st){call, now_us()};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int instance, nvmlGpmSample_t sample) {
    ENTER(nvmlGpmMigSampleGet, device);
    if (!is_set(call.slot, "gpm.supported"))
        return NVML_ERROR_NOT_SUPPORTED;
    for (call.mig = 0; call.mig < 8; call.mig++) {
        unsigned int id;
        if (uint_value(&call, &id, "gpu_instance") == NVML_SUCCESS && id == instance) {
            *sample = (struct nvmlGpmSample_st){call, now_us()};
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get) {
    ENTER_SYSTEM(nvmlGpmMetricsGet);
    CHECK(check_version(FN_nvmlGpmMetricsGet, get->version, (unsigned int[]){NVML_GPM_METRICS_GET_VERSION}, 1));
    nvmlGpmSample_t first = get->sample1, second = get->sample2;
    if (first == NULL || second == NULL || first->at_us == 0 || second->at_us == 0 || first->of.slot != second->of.slot ||
        first->of.mig != second->of.mig || get->numMetrics > NVML_GPM_METRIC_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned int i = 0; i < get->numMetrics; i++) {
        nvmlGpmMetric_t *metric = &get->metrics[i];
        /* Rates need time between the samples, in their order. */
        metric->nvmlReturn = second->at_us > first->at_us
                                 ? double_value(&second->of, &metric->value, "gpm.%u", metric->metricId)
                                 : NVML_ERROR_NO_DATA;
        metric->metricInfo.shortName = metric->metricInfo.longName = metric->metricInfo.unit = "";
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    ENTER(nvmlDeviceGetMigMode, device);
    CHECK(uint_value(&call, current, "mig.mode"));
    return uint_value(&call, pending, "mig.pending");
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    ENTER(nvmlDeviceGetMaxMigDeviceCount, device);
    /* 0 is the answer of a GPU that knows no MIG. */
    if (uint_value(&call, count, "mig.devices_max") != NVML_SUCCESS)
        *count = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig) {
    ENTER(nvmlDeviceGetMigDeviceHandleByIndex, device);
    struct call one = {call.slot, (int)index};
    unsigned int instance;
    if (!is_set(call.slot, "mig.mode") || index >= 8 || uint_value(&one, &instance, "gpu_instance") != NVML_SUCCESS)
        return NVML_ERROR_NOT_FOUND;
    *mig = handle_of(call.slot, (int)index);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device) {
    ENTER(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, mig);
    if (call.mig == NO_MIG)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = handle_of(call.slot, NO_MIG);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig) {
    ENTER(nvmlDeviceIsMigDeviceHandle, device);
    *is_mig = call.mig != NO_MIG;
    return NVML_SUCCESS;
}

#define OF_MIG(name, key)                                          \
    nvmlReturn_t name(nvmlDevice_t device, unsigned int *id) {     \
        ENTER(name, device);                                       \
        if (call.mig == NO_MIG)                                    \
            return NVML_ERROR_INVALID_ARGUMENT;                    \
        return uint_value(&call, id, key);                         \
    }
OF_MIG(nvmlDeviceGetGpuInstanceId, "gpu_instance")
OF_MIG(nvmlDeviceGetComputeInstanceId, "compute_instance")

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    ENTER(nvmlDeviceGetAttributes_v2, device);
    memset(attributes, 0, sizeof *attributes);
    CHECK(uint_value(&call, &attributes->multiprocessorCount, "attributes.multiprocessors"));
    CHECK(uint_value(&call, &attributes->gpuInstanceSliceCount, "attributes.gpu_slices"));
    CHECK(uint_value(&call, &attributes->computeInstanceSliceCount, "attributes.compute_slices"));
    return ull_value(&call, &attributes->memorySizeMB, "attributes.memory_mb");
}
nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
    __attribute__((alias("nvmlDeviceGetAttributes_v2")));
