/* The scenario file: lines of `[GPU.]key value`, read again when the file is another one; see scenario.py. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "double.h"

#define LOOK_AGAIN_NS 50000000LL
#define ANY_SCOPE 0xFFFFFFFFFFULL

enum shape { CONSTANT, ERROR, RAMP, SINE, NOISE };

struct value {
    uint64_t hash; /* of slot and key; 64 bits tell some thousand keys apart, so the keys are not kept */
    const char *text;
    enum shape shape;
    nvmlValueType_t type;
    double a, b, c;
    long long whole; /* of a constant, with all its bits */
};

struct scenario {
    char *text;
    struct value *slots;
    size_t mask;
    double epoch_s;
    bool orders[EVERY_GPU + 1]; /* whether any key of the slot is a `hang`, `delay_ms` or `error.<function>` */
};

const struct call system_call = {SYSTEM, NO_MIG};

/* Eight threads that read without pause must not keep a new scenario out. */
static pthread_rwlock_t lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static struct scenario scenario;
static struct stat seen;
static _Atomic long long look_at_ns;

static uint64_t mixed(uint64_t hash, const char *text) {
    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 1099511628211ULL;
    return hash;
}

static uint64_t key_hash(int slot, const char *key) { return mixed(14695981039346656037ULL + (unsigned)slot, key); }

static uint64_t field_hash(int slot, unsigned int field, unsigned long long scope) {
    uint64_t hash = 0x9E3779B97F4A7C15ULL * (((uint64_t)field << 8) + (unsigned)slot + 1);
    hash = (hash ^ (hash >> 29) ^ scope) * 0xBF58476D1CE4E5B9ULL;
    return hash ^ (hash >> 32);
}

static const struct value *at(uint64_t hash) {
    if (scenario.slots == NULL)
        return NULL;
    for (size_t i = hash & scenario.mask; scenario.slots[i].text != NULL; i = (i + 1) & scenario.mask)
        if (scenario.slots[i].hash == hash)
            return &scenario.slots[i];
    return NULL;
}

static const struct value *find(int slot, const char *key) {
    const struct value *value = at(key_hash(slot, key));
    return value == NULL && slot < SYSTEM ? at(key_hash(EVERY_GPU, key)) : value;
}

static double elapsed_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9 - scenario.epoch_s;
}

static double number(const struct value *value) {
    double t;
    switch (value->shape) {
    case RAMP:
        return value->a + value->b * elapsed_s();
    case SINE:
        return value->a + value->b * sin(2 * M_PI * elapsed_s() / value->c);
    case NOISE:
        t = floor(elapsed_s() / value->c);
        uint64_t bits = (value->hash ^ (uint64_t)(long long)t) * 0x9E3779B97F4A7C15ULL;
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ULL;
        return value->a + value->b * (2.0 * (double)(bits >> 11) * 0x1p-53 - 1.0);
    default:
        return value->a;
    }
}

static long long whole(const struct value *value) {
    return value->shape == CONSTANT ? value->whole : (long long)floor(number(value));
}

unsigned long long now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (unsigned long long)now.tv_sec * 1000000ULL + (unsigned long long)now.tv_nsec / 1000ULL;
}

bool beside_scenario(char *path, size_t size, const char *name) {
    const char *folder = getenv("SWITCHGEAR_NVML_DOUBLE");
    return folder != NULL && (size_t)snprintf(path, size, "%s/%s", folder, name) < size;
}

static bool parse_number(const char *word, double *out) {
    char *end;
    errno = 0;
    *out = strtod(word, &end);
    return end != word && (*end == '\0' || *end == ' ');
}

static const char *const TYPES[] = {"double", "uint", "ulong", "ull", "sll", "sint", "ushort"};

/* Returns false for a value that no writer of ours makes. */
static bool parse_value(struct value *value, char *text, bool field) {
    value->text = text;
    value->shape = CONSTANT;
    value->type = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    if (field && *text != '!') {
        size_t type = 0, length = strcspn(text, " ");
        while (type < sizeof TYPES / sizeof *TYPES &&
               (strlen(TYPES[type]) != length || strncmp(TYPES[type], text, length) != 0))
            type++;
        if (type == sizeof TYPES / sizeof *TYPES || text[length] == '\0')
            return false;
        value->type = (nvmlValueType_t)type;
        text += length + 1;
    }
    char shape[8] = "";
    double a = 0, b = 0, c = 1;
    if (sscanf(text, "! %lf", &a) == 1)
        value->shape = ERROR;
    else if (sscanf(text, "%7[a-z] %lf %lf %lf", shape, &a, &b, &c) >= 3)
        value->shape = strcmp(shape, "ramp") == 0    ? RAMP
                       : strcmp(shape, "sine") == 0  ? SINE
                       : strcmp(shape, "noise") == 0 ? NOISE
                                                     : CONSTANT;
    if (value->shape != CONSTANT) {
        value->a = a;
        value->b = b;
        value->c = c;
        return c > 0;
    }
    bool numeric = parse_number(text, &value->a);
    value->whole = text[0] == '-' ? strtoll(text, NULL, 10) : (long long)strtoull(text, NULL, 10);
    if (numeric && value->a != floor(value->a))
        value->whole = (long long)floor(value->a);
    return numeric || !field;
}

static bool parse_line(struct scenario *into, char *line) {
    char *space = strchr(line, ' ');
    if (space == NULL)
        return false;
    *space = '\0';
    int slot = SYSTEM;
    char *key = line, *end;
    if (line[0] == '*' && line[1] == '.') {
        slot = EVERY_GPU;
        key = line + 2;
    } else if (line[0] >= '0' && line[0] <= '9') {
        slot = (int)strtol(line, &end, 10);
        if (*end != '.' || slot >= GPUS_MAX)
            return false;
        key = end + 1;
    }
    unsigned int field;
    unsigned long long scope = ANY_SCOPE;
    bool is_field = sscanf(key, "fi.%u.%llu", &field, &scope) >= 1;
    struct value value = {.hash = is_field ? field_hash(slot, field, scope) : key_hash(slot, key)};
    if (!parse_value(&value, space + 1, is_field))
        return false;
    size_t i = value.hash & into->mask;
    while (into->slots[i].text != NULL && into->slots[i].hash != value.hash)
        i = (i + 1) & into->mask;
    into->slots[i] = value;
    if (strncmp(key, "hang", 4) == 0 || strncmp(key, "delay_ms", 8) == 0 || strncmp(key, "error.", 6) == 0)
        into->orders[slot] = true;
    if (slot == SYSTEM && strcmp(key, "epoch") == 0)
        into->epoch_s = value.a;
    return true;
}

static bool parse(struct scenario *into, char *text, size_t size) {
    size_t lines = 1;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    size_t slots = 64;
    while (slots < 2 * lines)
        slots *= 2;
    *into = (struct scenario){.text = text, .slots = calloc(slots, sizeof(struct value)), .mask = slots - 1};
    char *state = NULL;
    int number_of_line = 0;
    for (char *line = strtok_r(text, "\n", &state); line != NULL; line = strtok_r(NULL, "\n", &state)) {
        number_of_line++;
        if (!parse_line(into, line)) {
            fprintf(stderr, "nvml double: line %d of the scenario, `%s`, is not `[GPU.]key value`; write it with scenario.py\n",
                    number_of_line, line);
            free(into->slots);
            return false;
        }
    }
    return true;
}

static char *content_of(const char *path, size_t *size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0)
        return NULL;
    char *text = NULL;
    if (fstat(file, &status) == 0 && (text = malloc((size_t)status.st_size + 1)) != NULL) {
        ssize_t got = read(file, text, (size_t)status.st_size);
        *size = got < 0 ? 0 : (size_t)got;
        text[*size] = '\0';
    }
    close(file);
    return text;
}

void look_at_once(void) { atomic_store(&look_at_ns, 0); }

void read_changed_scenario(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long now_ns = now.tv_sec * 1000000000LL + now.tv_nsec, due_ns = atomic_load(&look_at_ns);
    if (now_ns < due_ns || !atomic_compare_exchange_strong(&look_at_ns, &due_ns, now_ns + LOOK_AGAIN_NS))
        return;
    char path[PATH_MAX];
    struct stat status;
    if (!beside_scenario(path, sizeof path, "scenario") || stat(path, &status) != 0)
        return;
    if (status.st_ino == seen.st_ino && status.st_size == seen.st_size &&
        status.st_mtim.tv_sec == seen.st_mtim.tv_sec && status.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return;
    size_t size = 0;
    char *text = content_of(path, &size);
    struct scenario next;
    if (text == NULL)
        return;
    pthread_rwlock_wrlock(&lock);
    seen = status;
    if (parse(&next, text, size)) {
        free(scenario.slots);
        free(scenario.text);
        scenario = next;
    } else
        free(text);
    pthread_rwlock_unlock(&lock);
}

/* Found under the lock and copied out of it. */
static nvmlReturn_t found(const struct call *call, struct value *out, const char *format, va_list indices) {
    char key[128];
    int length = call->mig == NO_MIG ? 0 : snprintf(key, sizeof key, "mig.%d.", call->mig);
    vsnprintf(key + length, sizeof key - (size_t)length, format, indices);
    pthread_rwlock_rdlock(&lock);
    const struct value *value = find(call->slot, key);
    if (value != NULL)
        *out = *value;
    pthread_rwlock_unlock(&lock);
    if (value == NULL)
        return NVML_ERROR_NOT_SUPPORTED;
    return out->shape == ERROR ? (nvmlReturn_t)out->a : NVML_SUCCESS;
}

#define NUMBER(name, c_type, expression)                                               \
    nvmlReturn_t name(const struct call *call, c_type *out, const char *key, ...) {    \
        struct value value;                                                            \
        va_list indices;                                                               \
        if (out == NULL)                                                               \
            return NVML_ERROR_INVALID_ARGUMENT;                                        \
        va_start(indices, key);                                                        \
        nvmlReturn_t code = found(call, &value, key, indices);                         \
        va_end(indices);                                                               \
        if (code == NVML_SUCCESS)                                                      \
            *out = (c_type)(expression);                                               \
        return code;                                                                   \
    }
NUMBER(uint_value, unsigned int, whole(&value))
NUMBER(int_value, int, whole(&value))
NUMBER(ull_value, unsigned long long, whole(&value))
NUMBER(double_value, double, number(&value))

nvmlReturn_t text_value(const struct call *call, char *out, unsigned int size, const char *format, ...) {
    char key[128];
    va_list indices;
    if (out == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    int length = call->mig == NO_MIG ? 0 : snprintf(key, sizeof key, "mig.%d.", call->mig);
    va_start(indices, format);
    vsnprintf(key + length, sizeof key - (size_t)length, format, indices);
    va_end(indices);
    pthread_rwlock_rdlock(&lock);
    const struct value *value = find(call->slot, key);
    nvmlReturn_t code = value == NULL                       ? NVML_ERROR_NOT_SUPPORTED
                        : value->shape == ERROR             ? (nvmlReturn_t)value->a
                        : strlen(value->text) + 1 > size    ? NVML_ERROR_INSUFFICIENT_SIZE
                                                            : NVML_SUCCESS;
    if (code == NVML_SUCCESS)
        strcpy(out, value->text);
    pthread_rwlock_unlock(&lock);
    return code;
}

bool is_set(int slot, const char *key) {
    pthread_rwlock_rdlock(&lock);
    const struct value *value = find(slot, key);
    bool set = value != NULL && value->whole != 0;
    pthread_rwlock_unlock(&lock);
    return set;
}

bool has_orders(int slot) {
    pthread_rwlock_rdlock(&lock);
    bool any = scenario.orders[slot] || (slot < SYSTEM && scenario.orders[EVERY_GPU]);
    pthread_rwlock_unlock(&lock);
    return any;
}

static const struct value *field(int slot, unsigned int id, unsigned int scope) {
    const struct value *value = at(field_hash(slot, id, scope));
    return value != NULL ? value : at(field_hash(slot, id, ANY_SCOPE));
}

void field_values(const struct call *call, int count, nvmlFieldValue_t *values) {
    long long now = (long long)now_us();
    pthread_rwlock_rdlock(&lock);
    for (nvmlFieldValue_t *one = values; one < values + count; one++) {
        const struct value *value = field(call->slot, one->fieldId, one->scopeId);
        if (value == NULL)
            value = field(EVERY_GPU, one->fieldId, one->scopeId);
        one->timestamp = now;
        one->latencyUsec = 1;
        one->nvmlReturn = value == NULL            ? NVML_ERROR_NOT_SUPPORTED
                          : value->shape == ERROR  ? (nvmlReturn_t)value->a
                                                   : NVML_SUCCESS;
        if (one->nvmlReturn != NVML_SUCCESS)
            continue;
        one->valueType = value->type;
        one->value.ullVal = 0;
        switch (value->type) {
        case NVML_VALUE_TYPE_DOUBLE:
            one->value.dVal = number(value);
            break;
        case NVML_VALUE_TYPE_SIGNED_INT:
            one->value.siVal = (int)whole(value);
            break;
        case NVML_VALUE_TYPE_UNSIGNED_INT:
            one->value.uiVal = (unsigned int)whole(value);
            break;
        case NVML_VALUE_TYPE_UNSIGNED_SHORT:
            one->value.usVal = (unsigned short)whole(value);
            break;
        case NVML_VALUE_TYPE_SIGNED_LONG_LONG:
            one->value.sllVal = whole(value);
            break;
        default:
            one->value.ullVal = (unsigned long long)whole(value);
        }
    }
    pthread_rwlock_unlock(&lock);
}
