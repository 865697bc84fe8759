/* MIG: a GPU that is divided, and the devices that it is divided into. */
#include <string.h>

#include "double.h"

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
