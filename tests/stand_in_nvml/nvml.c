/* A stand-in for libnvidia-ml.so.1: as much of NVML as pynvml asks of it here, over a folder of text files.
 *
 *   $STAND_IN_NVML/gpus       one device a line: UUID TOTAL_MIB FOREIGN_MIB [mig-of INDEX]
 *   $STAND_IN_NVML/options    words: `hidden` (names no processes), `no-sizes` (names them without sizes),
 *                             `broken` (every call fails), `late=MS` (memory comes back so long after death),
 *                             `asleep=MS` (it takes so long until it can be asked)
 *   $STAND_IN_NVML/use/PID    what a process holds: UUID MIB, one device a line
 *
 * Everything is read anew with each call, so a test changes the world by writing a file. A process that
 * is dead or a zombie still holds its memory for `late` milliseconds after it was first seen dead.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, UNKNOWN = 999 };
enum { GPUS_MAX = 64, PIDS_MAX = 4096 };

struct gpu { char uuid[96]; uint64_t total, foreign; int mig_of; };
struct memory { uint64_t total, free, used; };
struct process { unsigned pid; uint64_t bytes; unsigned gpu_instance, compute_instance; };

static struct gpu gpus[GPUS_MAX];
static int gpu_count;
static int hidden, no_sizes, broken;
static long late_ms, asleep_ms;
static struct { int pid; int64_t died_ms; } dead[PIDS_MAX];
static int dead_count;

static int64_t now_ms(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000LL + at.tv_nsec / 1000000;
}

static FILE *open_file(const char *name) {
    char path[4096];
    const char *folder = getenv("STAND_IN_NVML");
    if (!folder) return NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return fopen(path, "r");
}

static int read_world(void) {
    char line[512], word[512];
    FILE *file = open_file("gpus");
    gpu_count = hidden = no_sizes = broken = 0;
    late_ms = asleep_ms = 0;
    if (!file) return 0;
    while (gpu_count < GPUS_MAX && fgets(line, sizeof line, file)) {
        struct gpu *gpu = &gpus[gpu_count];
        unsigned long long total, foreign;
        int mig_of = -1;
        if (sscanf(line, "%95s %llu %llu mig-of %d", gpu->uuid, &total, &foreign, &mig_of) < 3) continue;
        gpu->total = total << 20;
        gpu->foreign = foreign << 20;
        gpu->mig_of = mig_of;
        gpu_count++;
    }
    fclose(file);
    file = open_file("options");
    while (file && fscanf(file, "%511s", word) == 1) {
        hidden |= !strcmp(word, "hidden");
        no_sizes |= !strcmp(word, "no-sizes");
        broken |= !strcmp(word, "broken");
        sscanf(word, "late=%ld", &late_ms);
        sscanf(word, "asleep=%ld", &asleep_ms);
    }
    if (file) fclose(file);
    return 1;
}

/* Alive, or dead for less than `late`. */
static int holds(int pid, int *alive) {
    char path[64], state = 'Z';
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 'Z';
        fclose(file);
    }
    *alive = state != 'Z' && state != 'X';
    if (*alive) return 1;
    for (int i = 0; i < dead_count; i++)
        if (dead[i].pid == pid) return now_ms() - dead[i].died_ms < late_ms;
    if (dead_count < PIDS_MAX) {
        dead[dead_count].pid = pid;
        dead[dead_count++].died_ms = now_ms();
    }
    return late_ms > 0;
}

/* What processes hold of a device; `list`, if there is one, gets the living of them. */
static uint64_t held(const struct gpu *gpu, struct process *list, unsigned room, unsigned *found) {
    char path[4096], name[512], uuid[96];
    unsigned long long mib;
    uint64_t sum = 0;
    const char *folder = getenv("STAND_IN_NVML");
    snprintf(path, sizeof path, "%s/use", folder ? folder : "");
    DIR *use = opendir(path);
    *found = 0;
    for (struct dirent *entry; use && (entry = readdir(use));) {
        int pid = atoi(entry->d_name), alive;
        if (pid <= 0 || strchr(entry->d_name, '.') || !holds(pid, &alive)) continue;
        snprintf(name, sizeof name, "use/%.200s", entry->d_name);
        FILE *file = open_file(name);
        while (file && fscanf(file, "%95s %llu", uuid, &mib) == 2) {
            if (strcmp(uuid, gpu->uuid)) continue;
            sum += (uint64_t)mib << 20;
            if (!alive) continue;
            if (list && *found < room)
                list[*found] = (struct process){(unsigned)pid, no_sizes ? UINT64_MAX : (uint64_t)mib << 20, 0, 0};
            ++*found;
        }
        if (file) fclose(file);
    }
    if (use) closedir(use);
    return sum;
}

static int cards[GPUS_MAX];
static int card_count(void) {
    int count = 0;
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i].mig_of < 0) cards[count++] = i;
    return count;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int read = read_world();
    for (int64_t until = now_ms() + asleep_ms; now_ms() < until;) usleep(1000 * (until - now_ms()));
    return read && !broken ? OK : UNKNOWN;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == OK ? "fine" : "the stand-in driver says no"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!read_world() || broken) return UNKNOWN;
    *count = (unsigned)card_count();
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **device) {
    if (!read_world() || broken) return UNKNOWN;
    if (index >= (unsigned)card_count()) return INVALID;
    *device = &gpus[cards[index]];
    return OK;
}

int nvmlDeviceGetUUID(struct gpu *device, char *text, unsigned size) {
    snprintf(text, size, "%s", device->uuid);
    return OK;
}

int nvmlDeviceGetName(struct gpu *device, char *text, unsigned size) {
    snprintf(text, size, device->mig_of < 0 ? "Stand-in GPU" : "Stand-in MIG instance");
    return OK;
}

int nvmlDeviceGetMemoryInfo(struct gpu *device, struct memory *memory) {
    unsigned found;
    if (broken) return UNKNOWN;
    uint64_t used = device->foreign + held(device, NULL, 0, &found);
    memory->total = device->total;
    memory->used = used < device->total ? used : device->total;
    memory->free = device->total - memory->used;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *device, unsigned *count, struct process *list) {
    unsigned found, room = *count;
    if (broken) return UNKNOWN;
    if (hidden) return *count = 0, OK;
    held(device, list, room, &found);
    *count = found;
    return found > room || (!list && found) ? TOO_SMALL : OK;
}

int nvmlDeviceGetMigMode(struct gpu *device, unsigned *current, unsigned *pending) {
    *current = *pending = 0;
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i].mig_of >= 0 && &gpus[cards[gpus[i].mig_of]] == device) *current = *pending = 1;
    return *current || strstr(device->uuid, "MIG") == NULL ? OK : UNSUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(struct gpu *device, unsigned *count) {
    (void)device;
    *count = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *device, unsigned index, struct gpu **instance) {
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i].mig_of >= 0 && &gpus[cards[gpus[i].mig_of]] == device && index-- == 0)
            return *instance = &gpus[i], OK;
    return NOT_FOUND;
}
