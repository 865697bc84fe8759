/* What a GPU measures and counts. */
#include <stdio.h>
#include <string.h>

#include "double.h"

#define UINT(name, key)                                            \
    nvmlReturn_t name(nvmlDevice_t device, unsigned int *value) {  \
        ENTER(name, device);                                       \
        return uint_value(&call, value, key);                      \
    }
#define ULL(name, key)                                                  \
    nvmlReturn_t name(nvmlDevice_t device, unsigned long long *value) { \
        ENTER(name, device);                                            \
        return ull_value(&call, value, key);                            \
    }
/* A number that is chosen by one more argument. */
#define UINT_BY(name, type, key)                                               \
    nvmlReturn_t name(nvmlDevice_t device, type which, unsigned int *value) {  \
        ENTER(name, device);                                                   \
        return uint_value(&call, value, key, (int)which);                      \
    }

UINT(nvmlDeviceGetPowerUsage, "power_mw")
UINT(nvmlDeviceGetPowerManagementLimit, "power_limit_mw")
UINT(nvmlDeviceGetPowerManagementDefaultLimit, "power_limit_mw.default")
UINT(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw.enforced")
ULL(nvmlDeviceGetTotalEnergyConsumption, "energy_mj")
UINT(nvmlDeviceGetFanSpeed, "fan")
UINT(nvmlDeviceGetNumFans, "fans")
UINT(nvmlDeviceGetMaxPcieLinkGeneration, "pcie.generation_max")
UINT(nvmlDeviceGetGpuMaxPcieLinkGeneration, "pcie.generation_max")
UINT(nvmlDeviceGetCurrPcieLinkGeneration, "pcie.generation")
UINT(nvmlDeviceGetMaxPcieLinkWidth, "pcie.width_max")
UINT(nvmlDeviceGetCurrPcieLinkWidth, "pcie.width")
UINT(nvmlDeviceGetPcieReplayCounter, "pcie.replay")
UINT(nvmlDeviceGetPcieSpeed, "pcie.speed_mbps")
UINT_BY(nvmlDeviceGetPcieThroughput, nvmlPcieUtilCounter_t, "pcie.throughput_kbps.%d")
UINT_BY(nvmlDeviceGetClockInfo, nvmlClockType_t, "clock_mhz.%d")
UINT_BY(nvmlDeviceGetMaxClockInfo, nvmlClockType_t, "clock_mhz_max.%d")
UINT_BY(nvmlDeviceGetApplicationsClock, nvmlClockType_t, "clock_mhz_application.%d")
UINT_BY(nvmlDeviceGetTemperature, nvmlTemperatureSensors_t, "temperature.%d")
UINT_BY(nvmlDeviceGetTemperatureThreshold, nvmlTemperatureThresholds_t, "temperature_threshold.%d")
ULL(nvmlDeviceGetCurrentClocksEventReasons, "clock_events")
ULL(nvmlDeviceGetCurrentClocksThrottleReasons, "clock_events")
ULL(nvmlDeviceGetSupportedClocksEventReasons, "clock_events_supported")
ULL(nvmlDeviceGetSupportedClocksThrottleReasons, "clock_events_supported")

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *state) {
    ENTER(nvmlDeviceGetPerformanceState, device);
    return uint_value(&call, (unsigned int *)state, "pstate");
}
nvmlReturn_t nvmlDeviceGetPowerState(nvmlDevice_t device, nvmlPstates_t *state)
    __attribute__((alias("nvmlDeviceGetPerformanceState")));

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least, unsigned int *most) {
    ENTER(nvmlDeviceGetPowerManagementLimitConstraints, device);
    CHECK(uint_value(&call, least, "power_limit_mw.min"));
    return uint_value(&call, most, "power_limit_mw.max");
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    ENTER(nvmlDeviceGetTemperatureV, device);
    CHECK(check_version(FN_nvmlDeviceGetTemperatureV, temperature->version, (unsigned int[]){nvmlTemperature_v1}, 1));
    return int_value(&call, &temperature->temperature, "temperature.%d", (int)temperature->sensorType);
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *margin) {
    ENTER(nvmlDeviceGetMarginTemperature, device);
    CHECK(check_version(FN_nvmlDeviceGetMarginTemperature, margin->version, (unsigned int[]){nvmlMarginTemperature_v1}, 1));
    return int_value(&call, &margin->marginTemperature, "temperature_margin");
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    ENTER(nvmlDeviceGetUtilizationRates, device);
    CHECK(uint_value(&call, &utilization->gpu, "utilization.gpu"));
    return uint_value(&call, &utilization->memory, "utilization.memory");
}

#define ENGINE(name, key)                                                                                    \
    nvmlReturn_t name(nvmlDevice_t device, unsigned int *utilization, unsigned int *period_us) {             \
        ENTER(name, device);                                                                                 \
        *period_us = 167000;                                                                                 \
        return uint_value(&call, utilization, key);                                                          \
    }
ENGINE(nvmlDeviceGetEncoderUtilization, "utilization.encoder")
ENGINE(nvmlDeviceGetDecoderUtilization, "utilization.decoder")
ENGINE(nvmlDeviceGetJpgUtilization, "utilization.jpeg")
ENGINE(nvmlDeviceGetOfaUtilization, "utilization.ofa")

static nvmlReturn_t memory(const struct call *call, nvmlMemory_v2_t *memory) {
    CHECK(ull_value(call, &memory->total, "memory.total"));
    CHECK(ull_value(call, &memory->used, "memory.used"));
    CHECK(ull_value(call, &memory->reserved, "memory.reserved"));
    memory->free = memory->total - memory->used - memory->reserved;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *info) {
    ENTER(nvmlDeviceGetMemoryInfo_v2, device);
    CHECK(check_version(FN_nvmlDeviceGetMemoryInfo_v2, info->version, (unsigned int[]){nvmlMemory_v2}, 1));
    return memory(&call, info);
}

/* The first version counts what is reserved as used. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *info) {
    ENTER(nvmlDeviceGetMemoryInfo, device);
    nvmlMemory_v2_t second;
    CHECK(memory(&call, &second));
    *info = (nvmlMemory_t){second.total, second.free, second.used + second.reserved};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *info) {
    ENTER(nvmlDeviceGetBAR1MemoryInfo, device);
    CHECK(ull_value(&call, &info->bar1Total, "bar1.total"));
    CHECK(ull_value(&call, &info->bar1Used, "bar1.used"));
    info->bar1Free = info->bar1Total - info->bar1Used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    ENTER(nvmlDeviceGetFieldValues, device);
    if (count <= 0 || values == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < count; i++)
        count_field(call.slot, values[i].fieldId);
    if (call.mig != NO_MIG)
        return NVML_ERROR_NOT_SUPPORTED;
    field_values(&call, count, values);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, nvmlPerfPolicyType_t policy, nvmlViolationTime_t *time) {
    ENTER(nvmlDeviceGetViolationStatus, device);
    CHECK(ull_value(&call, &time->violationTime, "violation_ns.%d", (int)policy));
    time->referenceTime = now_us();
    return NVML_SUCCESS;
}

/* Errors of memory. */

#define MODES(name, key)                                                                            \
    nvmlReturn_t name(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending) { \
        ENTER(name, device);                                                                        \
        CHECK(uint_value(&call, (unsigned int *)current, key ".mode"));                             \
        return uint_value(&call, (unsigned int *)pending, key ".pending");                          \
    }
MODES(nvmlDeviceGetEccMode, "ecc")

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t error, nvmlEccCounterType_t counter,
                                         unsigned long long *count) {
    ENTER(nvmlDeviceGetTotalEccErrors, device);
    return ull_value(&call, count, "ecc.%d.%d", (int)error, (int)counter);
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t error, nvmlEccCounterType_t counter,
                                             nvmlMemoryLocation_t location, unsigned long long *count) {
    ENTER(nvmlDeviceGetMemoryErrorCounter, device);
    return ull_value(&call, count, "ecc.%d.%d.%d", (int)error, (int)counter, (int)location);
}

nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, nvmlEccSramErrorStatus_t *status) {
    ENTER(nvmlDeviceGetSramEccErrorStatus, device);
    CHECK(check_version(FN_nvmlDeviceGetSramEccErrorStatus, status->version, (unsigned int[]){nvmlEccSramErrorStatus_v1}, 1));
    CHECK(ull_value(&call, &status->aggregateUncParity, "sram.aggregate.parity"));
    CHECK(ull_value(&call, &status->aggregateUncSecDed, "sram.aggregate.secded"));
    CHECK(ull_value(&call, &status->aggregateCor, "sram.aggregate.corrected"));
    CHECK(ull_value(&call, &status->volatileUncParity, "sram.volatile.parity"));
    CHECK(ull_value(&call, &status->volatileUncSecDed, "sram.volatile.secded"));
    CHECK(ull_value(&call, &status->volatileCor, "sram.volatile.corrected"));
    CHECK(ull_value(&call, &status->aggregateUncBucketL2, "sram.bucket.l2"));
    CHECK(ull_value(&call, &status->aggregateUncBucketSm, "sram.bucket.sm"));
    CHECK(ull_value(&call, &status->aggregateUncBucketPcie, "sram.bucket.pcie"));
    CHECK(ull_value(&call, &status->aggregateUncBucketMcu, "sram.bucket.mcu"));
    CHECK(ull_value(&call, &status->aggregateUncBucketOther, "sram.bucket.other"));
    return uint_value(&call, &status->bThresholdExceeded, "sram.threshold_exceeded");
}

/* Addresses are made up: who asks wants the number of pages. */
static nvmlReturn_t retired(const struct call *call, nvmlPageRetirementCause_t cause, unsigned int *count,
                            unsigned long long *addresses, unsigned long long *timestamps) {
    unsigned int pages, room = *count;
    CHECK(uint_value(call, &pages, "retired.%d", (int)cause));
    *count = pages;
    if (addresses == NULL ? pages > 0 : room < pages)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < pages; i++) {
        addresses[i] = 0x1000ULL * (i + 1);
        if (timestamps != NULL)
            timestamps[i] = 1700000000ULL + i;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
                                       unsigned long long *addresses) {
    ENTER(nvmlDeviceGetRetiredPages, device);
    return retired(&call, cause, count, addresses, NULL);
}
nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
                                          unsigned long long *addresses, unsigned long long *timestamps) {
    ENTER(nvmlDeviceGetRetiredPages_v2, device);
    return retired(&call, cause, count, addresses, timestamps);
}

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, nvmlEnableState_t *pending) {
    ENTER(nvmlDeviceGetRetiredPagesPendingStatus, device);
    return uint_value(&call, (unsigned int *)pending, "retired.pending");
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *pending, unsigned int *failure) {
    ENTER(nvmlDeviceGetRemappedRows, device);
    CHECK(uint_value(&call, corrected, "remapped.corrected"));
    CHECK(uint_value(&call, uncorrected, "remapped.uncorrected"));
    CHECK(uint_value(&call, pending, "remapped.pending"));
    return uint_value(&call, failure, "remapped.failure");
}

nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *banks) {
    ENTER(nvmlDeviceGetRowRemapperHistogram, device);
    CHECK(uint_value(&call, &banks->max, "remapped.banks.max"));
    CHECK(uint_value(&call, &banks->high, "remapped.banks.high"));
    CHECK(uint_value(&call, &banks->partial, "remapped.banks.partial"));
    CHECK(uint_value(&call, &banks->low, "remapped.banks.low"));
    return uint_value(&call, &banks->none, "remapped.banks.none");
}
