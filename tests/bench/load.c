/* A load generator that costs less than what it measures.
 *
 *     load requests PORT CONNECTIONS WARM_UP_S SECONDS UNTIL < requests
 *     load streams  PORT STREAMS     RAMP_S    SECONDS UNTIL < requests
 *
 * Standard input is one whole HTTP request, or several with a NUL between them, which are sent in turn.
 * `requests` sends one on each connection, and another as soon as its answer is there, on a new connection
 * if the server closes this one. `streams` sends one on each connection, all of them within RAMP_S, and
 * reads; a chunk carries the time at which it was sent: "@" and 19 digits (see stand_in.c).
 *
 * When it begins to count it writes the line "begin", and when it has counted for so long a line of JSON,
 * times in nanoseconds: its caller reads at both what the measured process has used. It leaves when
 * the file descriptor UNTIL comes to its end, so that nobody counts the closing of its connections. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 512
#define READ_MAX 65536
#define REQUESTS_MAX 64

typedef struct {
    int fd, digits; /* how many digits of a stamp were read; -1 outside of one */
    int in_head, chunked, closing, failed;
    long body_left; /* of an answer with a length */
    long asked_ns, stamp, first_byte;
    char head[4096];
    int head_size;
    char tail[8]; /* the last bytes of a chunked body */
} Connection;

typedef struct {
    long *values;
    size_t count, room;
} Series;

static Series latencies, first_bytes;
static Connection *connections;
static struct {
    const char *text;
    size_t size;
} requests[REQUESTS_MAX];
static size_t request_count, next_request;
static int poll_fd, port, streaming, counting;
static long errors, answers, bytes;

static long now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000L + at.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void add(Series *series, long value) {
    if (series->count == series->room) {
        series->room = series->room ? series->room * 2 : 65536;
        series->values = realloc(series->values, series->room * sizeof(long));
        if (series->values == NULL)
            die("realloc");
    }
    series->values[series->count++] = value;
}

static int by_size(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

static long quantile(Series *series, double part) {
    if (series->count == 0)
        return -1;
    size_t at = (size_t)(part * (series->count - 1) + 0.5);
    return series->values[at];
}

/* Connections ---------------------------------------------------------------------------------- */

static void ask(Connection *c) {
    c->in_head = 1;
    c->head_size = 0;
    c->chunked = 0;
    c->first_byte = 0;
    c->digits = -1;
    memset(c->tail, 0, sizeof c->tail);
    c->asked_ns = now_ns();
    const char *text = requests[next_request].text;
    size_t size = requests[next_request].size;
    next_request = (next_request + 1) % request_count;
    /* A request is far smaller than the socket's buffer, which is empty when it is sent. */
    if (send(c->fd, text, size, MSG_NOSIGNAL) != (ssize_t)size)
        errors++;
}

static void connect_to(Connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event wish = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &wish);
    ask(c);
}

static void fail(Connection *c, const char *why) {
    if (!c->failed && errors++ == 0)
        fprintf(stderr, "load: %s: %.*s\n", why, c->head_size, c->head);
    c->failed = 1;
    epoll_ctl(poll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    close(c->fd);
}

static void answered(Connection *c) {
    if (counting) {
        answers++;
        add(&latencies, now_ns() - c->asked_ns);
    }
    if (!c->closing) {
        ask(c);
        return;
    }
    close(c->fd);
    connect_to(c);
}

/* Take what belongs to the head. How many bytes that were. */
static size_t read_head(Connection *c, const char *data, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (c->head_size == sizeof c->head - 1) {
            fail(c, "an endless head");
            return size;
        }
        c->head[c->head_size++] = data[i];
        if (data[i] == '\n' && c->head_size >= 4 && memcmp(c->head + c->head_size - 4, "\r\n\r\n", 4) == 0) {
            c->head[c->head_size] = 0;
            if (strncmp(c->head, "HTTP/1.1 200", 12) != 0) {
                fail(c, "not 200");
                return size;
            }
            c->in_head = 0;
            char *length = strcasestr(c->head, "\r\ncontent-length:");
            c->chunked = length == NULL;
            c->closing = strcasestr(c->head, "\r\nconnection: close") != NULL;
            c->body_left = length != NULL ? atol(length + 17) : 0;
            return i + 1;
        }
    }
    return size;
}

static void read_stamps(Connection *c, const char *data, size_t size, long now) {
    const char *end = data + size;
    while (data < end) {
        if (c->digits < 0) {
            data = memchr(data, '@', end - data);
            if (data == NULL)
                return;
            data++;
            c->digits = 0;
            c->stamp = 0;
        }
        while (data < end && c->digits < 19) {
            c->stamp = c->stamp * 10 + (*data++ - '0');
            c->digits++;
        }
        if (c->digits == 19) {
            c->digits = -1;
            if (counting)
                add(&latencies, now - c->stamp);
        }
    }
}

static void hear(Connection *c, char *buffer) {
    ssize_t got = recv(c->fd, buffer, READ_MAX, 0);
    if (got <= 0) {
        fail(c, "the connection was closed");
        return;
    }
    long now = now_ns();
    if (counting)
        bytes += got;
    if (!c->first_byte) {
        c->first_byte = now;
        if (streaming || counting)
            add(&first_bytes, now - c->asked_ns);
    }
    size_t at = 0, size = got;
    if (c->in_head)
        at = read_head(c, buffer, size);
    if (c->failed || c->in_head)
        return;
    if (streaming) {
        read_stamps(c, buffer + at, size - at, now);
        return;
    }
    size_t more = size - at;
    if (!c->chunked) {
        c->body_left -= more;
        if (c->body_left <= 0)
            answered(c);
        return;
    }
    size_t kept = more < 7 ? more : 7;
    memmove(c->tail, c->tail + kept, 7 - kept);
    memcpy(c->tail + 7 - kept, buffer + size - kept, kept);
    if (memcmp(c->tail, "\r\n0\r\n\r\n", 7) == 0 || (more == 5 && memcmp(buffer + at, "0\r\n\r\n", 5) == 0))
        answered(c);
}

static void run_until(long end) {
    struct epoll_event events[EVENTS_MAX];
    static char buffer[READ_MAX];
    for (long now = now_ns(); now < end; now = now_ns()) {
        int count = epoll_wait(poll_fd, events, EVENTS_MAX, (end - now) / 1000000 + 1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++)
            hear(events[i].data.ptr, buffer);
    }
}

/* From the first line to the last --------------------------------------------------------------- */

static void read_requests(void) {
    size_t room = 1 << 16, size = 0;
    char *text = malloc(room);
    for (ssize_t got = 1; got > 0; size += got) {
        if (size == room)
            text = realloc(text, room *= 2);
        got = read(0, text + size, room - size);
        if (got < 0 || text == NULL)
            die("read");
    }
    const char *end = text + size;
    for (const char *at = text; at <= end; request_count++) {
        if (request_count == REQUESTS_MAX || at == end)
            die("too many requests, or an empty one");
        const char *stop = memchr(at, 0, end - at);
        requests[request_count].text = at;
        requests[request_count].size = (stop != NULL ? stop : end) - at;
        at += requests[request_count].size + 1;
    }
}

static void report(double seconds) {
    qsort(latencies.values, latencies.count, sizeof(long), by_size);
    qsort(first_bytes.values, first_bytes.count, sizeof(long), by_size);
    printf("{\"seconds\": %.6f, \"errors\": %ld, \"count\": %zu, \"bytes\": %ld", seconds, errors,
           latencies.count, bytes);
    printf(", \"p50_ns\": %ld, \"p99_ns\": %ld, \"max_ns\": %ld", quantile(&latencies, 0.5),
           quantile(&latencies, 0.99), quantile(&latencies, 1.0));
    printf(", \"first_byte_p50_ns\": %ld, \"first_byte_p99_ns\": %ld}\n", quantile(&first_bytes, 0.5),
           quantile(&first_bytes, 0.99));
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 7)
        die("load requests|streams PORT CONNECTIONS WARM_UP_S SECONDS UNTIL");
    streaming = strcmp(argv[1], "streams") == 0;
    port = atoi(argv[2]);
    int count = atoi(argv[3]);
    double warm_up_s = atof(argv[4]), seconds = atof(argv[5]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    read_requests();
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(count, sizeof *connections);
    long began = now_ns(), ramp = warm_up_s * 1e9;
    for (int i = 0; i < count; i++) {
        if (streaming) /* one after the other, so that their chunks don't all fall due together */
            run_until(began + (long)((double)ramp * i / count));
        connect_to(&connections[i]);
    }
    run_until(began + ramp + (streaming ? 300000000L : 0));
    puts("begin");
    fflush(stdout);
    long start = now_ns();
    counting = 1;
    run_until(start + (long)(seconds * 1e9));
    counting = 0;
    report((now_ns() - start) / 1e9);
    char byte;
    while (read(atoi(argv[6]), &byte, 1) > 0)
        ;
    return 0;
}
