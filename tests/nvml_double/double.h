/* What the parts of the double share: values of the scenario, and the beginning of every call. */
#ifndef SWITCHGEAR_NVML_DOUBLE_H
#define SWITCHGEAR_NVML_DOUBLE_H

/* Without this the header renames nvmlInit to nvmlInit_v2 and so on, and the old names would not be exported. */
#define NVML_NO_UNVERSIONED_FUNC_DEFS 1
#include <nvml.h>
#include <stdbool.h>
#include <stddef.h>

#include "functions.h" /* written by build.py: FN_<name> for each function of nvml.h, and FN_COUNT */

#define GPUS_MAX 16
#define SYSTEM GPUS_MAX         /* the slot of what belongs to no GPU */
#define EVERY_GPU (GPUS_MAX + 1) /* the slot of what holds for each GPU that says nothing else */
#define NO_MIG (-1)

/* Whom a call is about. slot: number of the GPU in the scenario. mig: index of its MIG device, or NO_MIG. */
struct call {
    int slot;
    int mig;
};

/* Counts the call, reads a changed scenario, and does what it orders for this call: an error, a delay, a hang.
   No lock is held meanwhile: a GPU that hangs holds up nobody else. */
nvmlReturn_t enter_device(struct call *call, int fn, nvmlDevice_t device);
nvmlReturn_t enter_system(int fn);
/* The same without the demand that nvmlInit was called. */
nvmlReturn_t enter_uninitialised(int fn);
/* For a call that waits: what would now refuse it, without counting it again. */
nvmlReturn_t still_waiting(int fn);
void count_field(int slot, unsigned int field);

#define ENTER(name, device)                                          \
    struct call call;                                                \
    nvmlReturn_t entered_ = enter_device(&call, FN_##name, (device)); \
    if (entered_ != NVML_SUCCESS)                                    \
    return entered_
#define ENTER_SYSTEM(name)                              \
    nvmlReturn_t entered_ = enter_system(FN_##name);    \
    if (entered_ != NVML_SUCCESS)                       \
    return entered_
#define CHECK(expression)                  \
    do {                                   \
        nvmlReturn_t code_ = (expression); \
        if (code_ != NVML_SUCCESS)         \
            return code_;                  \
    } while (0)

/* A key that the scenario does not have: NVML_ERROR_NOT_SUPPORTED. `! CODE` as its value: that code.
   key is a printf format; indices follow it. */
#define KEY __attribute__((format(printf, 3, 4)))
nvmlReturn_t uint_value(const struct call *call, unsigned int *out, const char *key, ...) KEY;
nvmlReturn_t int_value(const struct call *call, int *out, const char *key, ...) KEY;
nvmlReturn_t ull_value(const struct call *call, unsigned long long *out, const char *key, ...) KEY;
nvmlReturn_t double_value(const struct call *call, double *out, const char *key, ...) KEY;
/* NVML_ERROR_INSUFFICIENT_SIZE when the text does not fit. */
nvmlReturn_t text_value(const struct call *call, char *out, unsigned int size, const char *key, ...)
    __attribute__((format(printf, 4, 5)));
void field_values(const struct call *call, int count, nvmlFieldValue_t *values);
bool is_set(int slot, const char *key);
/* Whether the scenario orders anything at all for calls of this slot: nearly always not, and then they stay cheap. */
bool has_orders(int slot);

extern const struct call system_call;

/* The address of a file beside the scenario; false when there is no scenario. */
bool beside_scenario(char *path, size_t size, const char *name);
void read_changed_scenario(void);
/* The next read_changed_scenario looks at the file, however soon after the last look. */
void look_at_once(void);
/* NVML_ERROR_ARGUMENT_VERSION_MISMATCH unless version is one of the count in known (oldest first) that `struct_max.<function>`
   lets pass: 0 refuses all, 1 knows the first only. */
nvmlReturn_t check_version(int fn, unsigned int version, const unsigned int *known, int count);

unsigned long long now_us(void);
nvmlDevice_t handle_of(int slot, int mig);
/* Slot of a handle, without any of what enter_device does; -1 for none of ours. */
int slot_of(nvmlDevice_t device);
int present_gpus(int slots[GPUS_MAX]);
int parse_pci(const char *text, unsigned int *domain, unsigned int *bus, unsigned int *device);
void fill_pci(const char *text, nvmlPciInfo_t *pci);

#endif
