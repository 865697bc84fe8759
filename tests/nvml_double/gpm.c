/* GPM: rates between two samples, of a GPU or of one MIG instance of it. */
#include <stdlib.h>

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
