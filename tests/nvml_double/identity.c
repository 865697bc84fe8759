/* Who the GPUs are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "double.h"

int parse_pci(const char *text, unsigned int *domain, unsigned int *bus, unsigned int *device) {
    *domain = 0;
    if (sscanf(text, "%x:%x:%x", domain, bus, device) == 3)
        return 1;
    *domain = 0;
    return sscanf(text, "%x:%x", bus, device) == 2;
}

void fill_pci(const char *text, nvmlPciInfo_t *pci) {
    memset(pci, 0, sizeof *pci);
    parse_pci(text, &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xFFFF, pci->bus & 0xFF,
             pci->device & 0x1F);
    snprintf(pci->busId, sizeof pci->busId, NVML_DEVICE_PCI_BUS_ID_FMT, pci->domain, pci->bus, pci->device);
}

#define SYSTEM_TEXT(name, key)                                        \
    nvmlReturn_t name(char *text, unsigned int length) {              \
        ENTER_SYSTEM(name);                                           \
        return text_value(&system_call, text, length, key);           \
    }
SYSTEM_TEXT(nvmlSystemGetDriverVersion, "driver.version")
SYSTEM_TEXT(nvmlSystemGetNVMLVersion, "driver.nvml_version")

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    ENTER_SYSTEM(nvmlSystemGetCudaDriverVersion);
    return int_value(&system_call, version, "driver.cuda_version");
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    ENTER_SYSTEM(nvmlSystemGetCudaDriverVersion_v2);
    return int_value(&system_call, version, "driver.cuda_version");
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    ENTER_SYSTEM(nvmlDeviceGetCount_v2);
    int slots[GPUS_MAX];
    *count = (unsigned int)present_gpus(slots);
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) __attribute__((alias("nvmlDeviceGetCount_v2")));

/* With `lost`, `hang` and so on of the GPU that was found. */
static nvmlReturn_t handle(int fn, int slot, nvmlDevice_t *device) {
    struct call call;
    CHECK(enter_device(&call, fn, handle_of(slot, NO_MIG)));
    *device = handle_of(slot, NO_MIG);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleByIndex_v2);
    int slots[GPUS_MAX];
    if (index >= (unsigned int)present_gpus(slots))
        return NVML_ERROR_INVALID_ARGUMENT;
    return handle(FN_nvmlDeviceGetHandleByIndex_v2, slots[index], device);
}
nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
    __attribute__((alias("nvmlDeviceGetHandleByIndex_v2")));

static nvmlReturn_t handle_by(int fn, const char *key, const char *wanted, nvmlDevice_t *device) {
    int slots[GPUS_MAX], count = present_gpus(slots);
    unsigned int a, b, c, d, e, f;
    for (int i = 0; i < count; i++) {
        struct call call = {slots[i], NO_MIG};
        char text[96];
        if (text_value(&call, text, sizeof text, "%s", key) != NVML_SUCCESS)
            continue;
        bool same = strcmp(key, "pci") == 0 ? parse_pci(text, &a, &b, &c) && parse_pci(wanted, &d, &e, &f) && a == d &&
                                                  b == e && c == f
                                            : strcmp(text, wanted) == 0;
        if (same)
            return handle(fn, slots[i], device);
    }
    return NVML_ERROR_NOT_FOUND;
}

/* A MIG device has a UUID of its own, and is found by it like a GPU. */
static nvmlReturn_t mig_by_uuid(const char *uuid, nvmlDevice_t *device) {
    for (int slot = 0; slot < GPUS_MAX; slot++)
        for (int mig = 0; is_set(slot, "mig.mode") && mig < 8; mig++) {
            struct call call = {slot, mig};
            char text[96];
            if (text_value(&call, text, sizeof text, "uuid") == NVML_SUCCESS && strcmp(text, uuid) == 0) {
                *device = handle_of(slot, mig);
                return NVML_SUCCESS;
            }
        }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleByUUID);
    nvmlReturn_t code = handle_by(FN_nvmlDeviceGetHandleByUUID, "uuid", uuid, device);
    return code == NVML_ERROR_NOT_FOUND ? mig_by_uuid(uuid, device) : code;
}
nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleBySerial);
    return handle_by(FN_nvmlDeviceGetHandleBySerial, "serial", serial, device);
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pci, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleByPciBusId_v2);
    return handle_by(FN_nvmlDeviceGetHandleByPciBusId_v2, "pci", pci, device);
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pci, nvmlDevice_t *device)
    __attribute__((alias("nvmlDeviceGetHandleByPciBusId_v2")));

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    ENTER(nvmlDeviceGetIndex, device);
    int slots[GPUS_MAX], count = present_gpus(slots);
    for (int i = 0; i < count; i++)
        if (slots[i] == call.slot) {
            *index = call.mig == NO_MIG ? (unsigned int)i : (unsigned int)call.mig;
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

#define TEXT(name, key)                                                         \
    nvmlReturn_t name(nvmlDevice_t device, char *text, unsigned int length) {   \
        ENTER(name, device);                                                    \
        return text_value(&call, text, length, key);                            \
    }
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
TEXT(nvmlDeviceGetBoardPartNumber, "part_number")
TEXT(nvmlDeviceGetInforomImageVersion, "inforom.image")

nvmlReturn_t nvmlDeviceGetInforomVersion(nvmlDevice_t device, nvmlInforomObject_t object, char *text, unsigned int length) {
    ENTER(nvmlDeviceGetInforomVersion, device);
    return text_value(&call, text, length, "inforom.%d", (int)object);
}

#define UINT(name, key)                                            \
    nvmlReturn_t name(nvmlDevice_t device, unsigned int *value) {  \
        ENTER(name, device);                                       \
        return uint_value(&call, value, key);                      \
    }
UINT(nvmlDeviceGetMinorNumber, "minor")
UINT(nvmlDeviceGetModuleId, "module")
UINT(nvmlDeviceGetBoardId, "board")
UINT(nvmlDeviceGetMultiGpuBoard, "multi_gpu_board")
UINT(nvmlDeviceGetNumaNodeId, "numa_node")
UINT(nvmlDeviceGetNumGpuCores, "cores")
UINT(nvmlDeviceGetMemoryBusWidth, "memory.bus_width")
UINT(nvmlDeviceGetArchitecture, "architecture")

#define ENUM(name, type, key)                                     \
    nvmlReturn_t name(nvmlDevice_t device, type *value) {         \
        ENTER(name, device);                                      \
        return uint_value(&call, (unsigned int *)value, key);     \
    }
ENUM(nvmlDeviceGetBrand, nvmlBrandType_t, "brand")
ENUM(nvmlDeviceGetComputeMode, nvmlComputeMode_t, "compute_mode")
ENUM(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, "persistence")
ENUM(nvmlDeviceGetDisplayMode, nvmlEnableState_t, "display_mode")
ENUM(nvmlDeviceGetDisplayActive, nvmlEnableState_t, "display_active")

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    ENTER(nvmlDeviceGetCudaComputeCapability, device);
    CHECK(int_value(&call, major, "capability.major"));
    return int_value(&call, minor, "capability.minor");
}

nvmlReturn_t nvmlDeviceGetGspFirmwareMode(nvmlDevice_t device, unsigned int *enabled, unsigned int *by_default) {
    ENTER(nvmlDeviceGetGspFirmwareMode, device);
    CHECK(uint_value(&call, enabled, "gsp.enabled"));
    *by_default = *enabled;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *version) {
    ENTER(nvmlDeviceGetGspFirmwareVersion, device);
    return text_value(&call, version, 64, "gsp.version");
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    ENTER(nvmlDeviceGetPciInfo_v3, device);
    char text[64];
    CHECK(text_value(&call, text, sizeof text, "pci"));
    fill_pci(text, pci);
    if (uint_value(&call, &pci->pciDeviceId, "pci.device_id") != NVML_SUCCESS)
        pci->pciDeviceId = 0x233010DE;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci)
    __attribute__((alias("nvmlDeviceGetPciInfo_v3")));

/* The oldest form ends before the long bus id: writing it would overrun the caller's struct. */
nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    nvmlPciInfo_t whole;
    CHECK(nvmlDeviceGetPciInfo_v3(device, &whole));
    memcpy(pci, &whole, offsetof(nvmlPciInfo_t, busId));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *pci) {
    ENTER(nvmlDeviceGetPciInfoExt, device);
    CHECK(check_version(FN_nvmlDeviceGetPciInfoExt, pci->version, (unsigned int[]){nvmlPciInfoExt_v1}, 1));
    char text[64];
    nvmlPciInfo_t plain;
    CHECK(text_value(&call, text, sizeof text, "pci"));
    fill_pci(text, &plain);
    *pci = (nvmlPciInfoExt_t){pci->version, plain.domain, plain.bus, plain.device, 0x233010DE, 0, 0x03, 0x02, ""};
    memcpy(pci->busId, plain.busId, sizeof pci->busId);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPlatformInfo(nvmlDevice_t device, nvmlPlatformInfo_t *info) {
    ENTER(nvmlDeviceGetPlatformInfo, device);
    CHECK(check_version(FN_nvmlDeviceGetPlatformInfo, info->version,
                        (unsigned int[]){nvmlPlatformInfo_v1, nvmlPlatformInfo_v2}, 2));
    unsigned int slot = 0, tray = 0, host = 0, module = 0;
    CHECK(uint_value(&call, &slot, "platform.slot"));
    CHECK(uint_value(&call, &tray, "platform.tray"));
    CHECK(uint_value(&call, &host, "platform.host"));
    CHECK(uint_value(&call, &module, "module"));
    /* Both versions have the same layout; only the names differ. */
    info->slotNumber = (unsigned char)slot;
    info->trayIndex = (unsigned char)tray;
    info->hostId = (unsigned char)host;
    info->moduleId = (unsigned char)module;
    CHECK(text_value(&call, (char *)info->chassisSerialNumber, sizeof info->chassisSerialNumber, "platform.chassis"));
    return NVML_SUCCESS;
}
