// A libamd_smi.so of our own: it answers what a test has put into it, so that the unmodified amdsmi runs without a GPU.
//
// Every function of the library has a stub that comes here with its arguments. What it answers about a GPU (a status, and
// bytes for its pointer arguments) is set by the test through `double_*`; what is not set is not supported.

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { GPUS_MAX = 16, ANSWERS_MAX = 512, BYTES_MAX = 16384, NOT_SUPPORTED = 2, NUMBER_MAX = 1 << 24 };

struct answer {
    char function[64];
    int gpu, argument, status;
    size_t size;
    unsigned char bytes[BYTES_MAX];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct answer answers[ANSWERS_MAX];
static int answer_count, gpu_count, init_status;
static volatile int hanging[GPUS_MAX];
static volatile unsigned calls[GPUS_MAX];
static char gpus[GPUS_MAX];  // a handle is the address of its element

static int gpu_of(void *handle) {
    char *at = handle;
    return at >= gpus && at < gpus + gpu_count ? (int)(at - gpus) : -1;
}

void double_gpus(int count) { gpu_count = count; }
void double_init_status(int status) { init_status = status; }
void double_hang(int gpu, int on) { hanging[gpu] = on; }
unsigned double_calls(int gpu) { return calls[gpu]; }

// argument: 1 to 3, the pointer that gets the bytes; 0: only the status.
int double_set(const char *function, int gpu, int argument, int status, const void *bytes, size_t size) {
    if (size > BYTES_MAX || strlen(function) >= sizeof answers[0].function) return -1;
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < answer_count && (answers[at].gpu != gpu || answers[at].argument != argument ||
                                 strcmp(answers[at].function, function) != 0))
        at++;
    if (at < ANSWERS_MAX) {
        struct answer *answer = &answers[at];
        strcpy(answer->function, function);
        answer->gpu = gpu;
        answer->argument = argument;
        answer->status = status;
        answer->size = size;
        if (size) memcpy(answer->bytes, bytes, size);
        if (at == answer_count) answer_count++;
    }
    pthread_mutex_unlock(&lock);
    return at < ANSWERS_MAX ? 0 : -1;
}

// A first argument that is a number and no pointer (a block, a sensor) is part of the name: `amdsmi_get_gpu_ecc_count#1`.
int double_answer(const char *name, void *handle, void *first, void *second, void *third) {
    char function[64];
    uintptr_t number = (uintptr_t)first;
    snprintf(function, sizeof function, number && number < NUMBER_MAX ? "%s#%lu" : "%s", name, (unsigned long)number);
    int gpu = gpu_of(handle), status = NOT_SUPPORTED;
    if (gpu < 0) return 1;  // AMDSMI_STATUS_INVAL
    calls[gpu]++;
    while (hanging[gpu]) usleep(10000);
    void *arguments[] = {0, first, second, third};
    pthread_mutex_lock(&lock);
    for (int at = 0; at < answer_count; at++) {
        struct answer *answer = &answers[at];
        if (answer->gpu != gpu || strcmp(answer->function, function) != 0) continue;
        status = answer->status;
        void *target = arguments[answer->argument];
        if (status == 0 && target && answer->size) memcpy(target, answer->bytes, answer->size);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

int amdsmi_init(uint64_t flags) {
    (void)flags;
    return init_status;
}

int amdsmi_shut_down(void) { return 0; }

int amdsmi_get_socket_handles(uint32_t *count, void **sockets) {
    if (sockets) sockets[0] = &gpu_count;
    *count = 1;
    return 0;
}

int amdsmi_get_processor_handles(void *socket, uint32_t *count, void **handles) {
    (void)socket;
    for (int at = 0; handles && at < gpu_count; at++) handles[at] = &gpus[at];
    *count = (uint32_t)gpu_count;
    return 0;
}
