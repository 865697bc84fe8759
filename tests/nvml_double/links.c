/* NVLink, the fabric behind it, and how GPUs reach each other. */
#include <stdio.h>
#include <string.h>

#include "double.h"

#define OF_LINK(name, type, key)                                                   \
    nvmlReturn_t name(nvmlDevice_t device, unsigned int link, type *value) {       \
        ENTER(name, device);                                                       \
        if (link >= NVML_NVLINK_MAX_LINKS)                                         \
            return NVML_ERROR_INVALID_ARGUMENT;                                    \
        return uint_value(&call, (unsigned int *)value, "nvlink.%u." key, link);   \
    }
OF_LINK(nvmlDeviceGetNvLinkState, nvmlEnableState_t, "state")
OF_LINK(nvmlDeviceGetNvLinkVersion, unsigned int, "version")
OF_LINK(nvmlDeviceGetNvLinkRemoteDeviceType, nvmlIntNvLinkDeviceType_t, "remote_type")

nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned int link, nvmlNvLinkCapability_t capability,
                                           unsigned int *result) {
    ENTER(nvmlDeviceGetNvLinkCapability, device);
    return uint_value(&call, result, "nvlink.%u.capability.%d", link, (int)capability);
}

nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link, nvmlNvLinkErrorCounter_t counter,
                                             unsigned long long *value) {
    ENTER(nvmlDeviceGetNvLinkErrorCounter, device);
    return ull_value(&call, value, "nvlink.%u.error.%d", link, (int)counter);
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    ENTER(nvmlDeviceGetNvLinkRemotePciInfo_v2, device);
    char text[64];
    CHECK(text_value(&call, text, sizeof text, "nvlink.%u.remote_pci", link));
    fill_pci(text, pci);
    return NVML_SUCCESS;
}

struct fabric {
    unsigned int state, status, clique, health_mask, health_summary;
    unsigned char cluster[NVML_GPU_FABRIC_UUID_LEN];
};

static nvmlReturn_t fabric(const struct call *call, struct fabric *fabric) {
    char text[64];
    memset(fabric, 0, sizeof *fabric);
    CHECK(uint_value(call, &fabric->state, "fabric.state"));
    CHECK(uint_value(call, &fabric->status, "fabric.status"));
    CHECK(uint_value(call, &fabric->clique, "fabric.clique"));
    CHECK(uint_value(call, &fabric->health_mask, "fabric.health_mask"));
    CHECK(uint_value(call, &fabric->health_summary, "fabric.health_summary"));
    CHECK(text_value(call, text, sizeof text, "fabric.cluster"));
    for (int i = 0; i < NVML_GPU_FABRIC_UUID_LEN && sscanf(text + 2 * i, "%2hhx", &fabric->cluster[i]) == 1; i++)
        ;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info) {
    ENTER(nvmlDeviceGetGpuFabricInfo, device);
    struct fabric now;
    CHECK(fabric(&call, &now));
    memcpy(info->clusterUuid, now.cluster, sizeof now.cluster);
    info->status = (nvmlReturn_t)now.status;
    info->cliqueId = now.clique;
    info->state = (nvmlGpuFabricState_t)now.state;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *info) {
    ENTER(nvmlDeviceGetGpuFabricInfoV, device);
    CHECK(check_version(FN_nvmlDeviceGetGpuFabricInfoV, info->version,
                        (unsigned int[]){nvmlGpuFabricInfo_v2, nvmlGpuFabricInfo_v3}, 2));
    struct fabric now;
    CHECK(fabric(&call, &now));
    memcpy(info->clusterUuid, now.cluster, sizeof now.cluster);
    info->status = (nvmlReturn_t)now.status;
    info->cliqueId = now.clique;
    info->state = (nvmlGpuFabricState_t)now.state;
    info->healthMask = now.health_mask;
    /* The second version ends here: one byte more would overrun the caller's struct. */
    if (info->version == nvmlGpuFabricInfo_v3)
        info->healthSummary = (unsigned char)now.health_summary;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t capability,
                                    nvmlGpuP2PStatus_t *status) {
    ENTER(nvmlDeviceGetP2PStatus, device);
    if (slot_of(other) < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (uint_value(&call, (unsigned int *)status, "p2p.%d.%d", slot_of(other), (int)capability) == NVML_SUCCESS)
        return NVML_SUCCESS;
    return uint_value(&call, (unsigned int *)status, "p2p");
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t other, nvmlGpuTopologyLevel_t *level) {
    ENTER(nvmlDeviceGetTopologyCommonAncestor, device);
    if (slot_of(other) < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (uint_value(&call, (unsigned int *)level, "topology.%d", slot_of(other)) == NVML_SUCCESS)
        return NVML_SUCCESS;
    return uint_value(&call, (unsigned int *)level, "topology");
}
