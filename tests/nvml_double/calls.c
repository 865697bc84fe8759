/* The life of the library, its handles, and the beginning of every call: counted, then perhaps refused, delayed or hung. */
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "double.h"

#define HANDLE_MARK 0x4E560000000ULL
#define MIG_BITS 8

/* The file `calls`: how often each function and each field was asked, by GPU; shared by the processes that use the scenario. */
struct row {
    char name[64];
    _Atomic unsigned int by_slot[GPUS_MAX + 1];
    unsigned int unused;
};
#define ROWS (FN_COUNT + NVML_FI_MAX)

static const char *const NAMES[] = {FUNCTION_NAMES};
static struct row *rows;
static pthread_once_t opened = PTHREAD_ONCE_INIT;
/* Which of the driver's lives this process talks to; 0 before nvmlInit. */
static _Atomic unsigned int generation;
static _Atomic int users;

static void open_rows(void) {
    char path[PATH_MAX];
    if (!beside_scenario(path, sizeof path, "calls"))
        return;
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0)
        return;
    if (ftruncate(file, sizeof(struct row) * ROWS) == 0) {
        void *shared = mmap(NULL, sizeof(struct row) * ROWS, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        rows = shared == MAP_FAILED ? NULL : shared;
    }
    close(file);
}

static void count(int row, int slot) {
    pthread_once(&opened, open_rows);
    if (rows == NULL)
        return;
    if (rows[row].name[0] == '\0') {
        if (row < FN_COUNT)
            strncpy(rows[row].name, NAMES[row], sizeof rows[row].name - 1);
        else
            snprintf(rows[row].name, sizeof rows[row].name, "field %d", row - FN_COUNT);
    }
    atomic_fetch_add_explicit(&rows[row].by_slot[slot], 1, memory_order_relaxed);
}

void count_field(int slot, unsigned int field) {
    if (field < NVML_FI_MAX)
        count(FN_COUNT + (int)field, slot);
}

static void sleep_ms(unsigned int ms) {
    struct timespec pause = {ms / 1000, (long)(ms % 1000) * 1000000L};
    nanosleep(&pause, NULL);
}

static bool hangs(int slot, const char *key) { return is_set(slot, "hang") || is_set(slot, key); }

/* What the scenario orders for this function: `hang`, `delay_ms`, each also for one function, and `error.<function>`. */
static nvmlReturn_t ordered(int fn, int slot) {
    struct call call = {slot, NO_MIG};
    char key[96];
    unsigned int value;
    if (!has_orders(slot))
        return NVML_SUCCESS;
    snprintf(key, sizeof key, "hang.%s", NAMES[fn]);
    while (hangs(slot, key)) {
        sleep_ms(20);
        read_changed_scenario();
    }
    if (uint_value(&call, &value, "delay_ms") == NVML_SUCCESS ||
        uint_value(&call, &value, "delay_ms.%s", NAMES[fn]) == NVML_SUCCESS)
        sleep_ms(value);
    return uint_value(&call, &value, "error.%s", NAMES[fn]) == NVML_SUCCESS ? (nvmlReturn_t)value : NVML_SUCCESS;
}

static unsigned int driver_generation(void) {
    unsigned int value;
    return uint_value(&system_call, &value, "driver.generation") == NVML_SUCCESS ? value : 1;
}

static nvmlReturn_t driver_state(void) {
    if (!is_set(SYSTEM, "driver.loaded"))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    return atomic_load(&users) > 0 && atomic_load(&generation) == driver_generation() ? NVML_SUCCESS
                                                                                      : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t enter_uninitialised(int fn) {
    read_changed_scenario();
    count(fn, SYSTEM);
    return ordered(fn, SYSTEM);
}

nvmlReturn_t enter_system(int fn) {
    CHECK(enter_uninitialised(fn));
    return driver_state();
}

nvmlReturn_t still_waiting(int fn) {
    CHECK(ordered(fn, SYSTEM));
    return driver_state();
}

nvmlReturn_t enter_device(struct call *call, int fn, nvmlDevice_t device) {
    read_changed_scenario();
    int slot = slot_of(device);
    count(fn, slot < 0 ? SYSTEM : slot);
    CHECK(driver_state());
    if (slot < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    *call = (struct call){slot, (int)(((uintptr_t)device >> MIG_BITS) & 0xFF) - 1};
    unsigned int instance;
    if (call->mig != NO_MIG && uint_value(call, &instance, "gpu_instance") != NVML_SUCCESS)
        return NVML_ERROR_INVALID_ARGUMENT; /* it was destroyed */
    nvmlReturn_t order = ordered(fn, slot);
    /* After a hang: it may have ended because the GPU was given up. */
    return is_set(slot, "lost") ? NVML_ERROR_GPU_IS_LOST : order;
}

nvmlDevice_t handle_of(int slot, int mig) {
    /* A handle of an earlier life of the driver is none of ours: real ones dangle. */
    uintptr_t life = atomic_load(&generation) & 0xFF;
    return (nvmlDevice_t)(HANDLE_MARK | life << 16 | (uintptr_t)(mig + 1) << MIG_BITS | (uintptr_t)slot);
}

int slot_of(nvmlDevice_t device) {
    uintptr_t bits = (uintptr_t)device, life = atomic_load(&generation) & 0xFF;
    int slot = (int)(bits & 0xFF);
    return (bits & ~0xFFFFFFULL) == HANDLE_MARK && ((bits >> 16) & 0xFF) == life && slot < GPUS_MAX ? slot : -1;
}

int present_gpus(int slots[GPUS_MAX]) {
    int count = 0;
    for (int slot = 0; slot < GPUS_MAX; slot++)
        if (is_set(slot, "present"))
            slots[count++] = slot;
    return count;
}

nvmlReturn_t check_version(int fn, unsigned int version, const unsigned int *known, int count) {
    unsigned int newest;
    if (uint_value(&system_call, &newest, "struct_max.%s", NAMES[fn]) == NVML_SUCCESS && (int)newest < count)
        count = (int)newest;
    for (int i = 0; i < count; i++)
        if (version == known[i])
            return NVML_SUCCESS;
    return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
}

static nvmlReturn_t init(int fn) {
    CHECK(enter_uninitialised(fn));
    if (!is_set(SYSTEM, "driver.loaded"))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    atomic_store(&generation, driver_generation());
    atomic_fetch_add(&users, 1);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit(void) { return init(FN_nvmlInit); }
nvmlReturn_t nvmlInit_v2(void) { return init(FN_nvmlInit_v2); }
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return init(FN_nvmlInitWithFlags);
}

nvmlReturn_t nvmlShutdown(void) {
    CHECK(enter_uninitialised(FN_nvmlShutdown));
    if (atomic_load(&users) == 0)
        return NVML_ERROR_UNINITIALIZED;
    atomic_fetch_sub(&users, 1);
    return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS:
        return "Success";
    case NVML_ERROR_UNINITIALIZED:
        return "Not initialised";
    case NVML_ERROR_NOT_SUPPORTED:
        return "Not supported by this GPU";
    case NVML_ERROR_NO_PERMISSION:
        return "No permission";
    case NVML_ERROR_DRIVER_NOT_LOADED:
        return "Driver not loaded";
    case NVML_ERROR_TIMEOUT:
        return "Timeout";
    case NVML_ERROR_GPU_IS_LOST:
        return "GPU is lost";
    default:
        return "Another error";
    }
}

/* What stubs.c, written by build.py, calls for each function that the double does not have. */
nvmlReturn_t unsupported(int fn, nvmlDevice_t device) {
    struct call call;
    CHECK(device == NULL ? enter_system(fn) : enter_device(&call, fn, device));
    return NVML_ERROR_NOT_SUPPORTED;
}
