/* A stand-in for llama-server that costs next to nothing, so that what is measured is what stands before it.
 *
 * It takes llama-server's command line (and heeds --host, --port and --alias only), answers what is asked
 * of it while it loads and runs (/health, /props, /slots), and to every POST gives a completion of the
 * size that llama-server's have: whole, or as a stream of chunks, one every `interval_us` of the request's
 * body for `n_predict` times. Each chunk says when it was sent: "@" and 19 digits, nanoseconds of the
 * monotonic clock, which all processes of a machine share.
 *
 * One thread, one epoll, no timer per stream: all streams of a run have the same pace, so the queue of
 * what is due next is a list in the order of arrival. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 65536
#define EVENTS_MAX 512
#define CHUNK_MAX 512

typedef struct Connection {
    char *in; /* what has come of a request */
    size_t in_size, in_room;
    char rest[CHUNK_MAX]; /* what the socket would not take of the last chunk */
    size_t rest_size;
    int fd, streams;
    long chunks_left, interval_ns, due_ns;
    struct Connection *before, *after; /* in the queue of streams, by when they are due */
} Connection;

static Connection *connections[CONNECTIONS_MAX];
static Connection *first, *last;
static const char *alias = "bench";
static int poll_fd;

static long now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000L + at.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* The queue of streams ------------------------------------------------------------------------- */

static void enqueue(Connection *c) {
    Connection *before = last;
    while (before != NULL && before->due_ns > c->due_ns)
        before = before->before;
    c->before = before;
    c->after = before != NULL ? before->after : first;
    *(c->before != NULL ? &c->before->after : &first) = c;
    *(c->after != NULL ? &c->after->before : &last) = c;
    c->streams = 1;
}

static void dequeue(Connection *c) {
    if (!c->streams)
        return;
    *(c->before != NULL ? &c->before->after : &first) = c->after;
    *(c->after != NULL ? &c->after->before : &last) = c->before;
    c->streams = 0;
}

/* Answers -------------------------------------------------------------------------------------- */

static void leave(Connection *c) {
    dequeue(c);
    close(c->fd);
    connections[c->fd] = NULL;
    free(c->in);
    free(c);
}

/* Send, and keep what the socket does not take. 0: the peer is gone. */
static int deliver(Connection *c, const char *data, size_t size) {
    ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        return 0;
    if (sent < 0)
        sent = 0;
    if ((size_t)sent < size) {
        c->rest_size = size - sent;
        if (c->rest_size > sizeof c->rest)
            return 0;
        memcpy(c->rest, data + sent, c->rest_size);
        struct epoll_event wish = {.events = EPOLLIN | EPOLLOUT, .data.fd = c->fd};
        epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &wish);
    }
    return 1;
}

static int answer(Connection *c, const char *body, size_t size) {
    char out[4096];
    int length = snprintf(out, sizeof out,
                          "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n"
                          "Content-Type: application/json; charset=utf-8\r\nContent-Length: %zu\r\n"
                          "Keep-Alive: timeout=5, max=100\r\n\r\n%.*s",
                          size, (int)size, body);
    return deliver(c, out, length);
}

/* An answer's sentence is shorter by none to 15 letters, in turn: answers have many lengths. */
static int complete(Connection *c) {
    static const char sentence[] = "by a stand-in that has learnt one sentence by heart and says it to everybody "
                                   "who asks for it, whatever the question was. Nothing else is known of it.";
    static unsigned turn;
    int letters = (int)sizeof sentence - 1 - (int)(turn++ % 16);
    char body[1024];
    int size = snprintf(
        body, sizeof body,
        "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
        "\"Sent @%019ld %.*s\"}}],\"created\":1764300000,\"model\":\"%s\","
        "\"system_fingerprint\":\"b0000-00000000\",\"object\":\"chat.completion\",\"usage\":{\"completion_tokens\":32,"
        "\"prompt_tokens\":24,\"total_tokens\":56},\"id\":\"chatcmpl-7YQk2mJx9vT4bR1cN8sLw3hZ6pD5fGaE\","
        "\"timings\":{\"cache_n\":0,\"prompt_n\":24,\"prompt_ms\":1.5,\"predicted_n\":32,\"predicted_ms\":2.5}}",
        now_ns(), letters, sentence, alias);
    return answer(c, body, size);
}

static int send_chunk(Connection *c) {
    char body[CHUNK_MAX - 16], out[CHUNK_MAX];
    int size = snprintf(body, sizeof body,
                        "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\"@%019ld\"}}],"
                        "\"created\":1764300000,\"id\":\"chatcmpl-7YQk2mJx9vT4bR1cN8sLw3hZ6pD5fGaE\",\"model\":\"%s\","
                        "\"system_fingerprint\":\"b0000-00000000\",\"object\":\"chat.completion.chunk\"}\n\n",
                        now_ns(), alias);
    int length = snprintf(out, sizeof out, "%x\r\n%s\r\n", size, body);
    return deliver(c, out, length);
}

static int begin_stream(Connection *c, long chunks, long interval_us) {
    static const char head[] = "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n"
                               "X-Accel-Buffering: no\r\nContent-Type: text/event-stream\r\n"
                               "Keep-Alive: timeout=5, max=100\r\nTransfer-Encoding: chunked\r\n\r\n";
    c->chunks_left = chunks;
    c->interval_ns = interval_us * 1000;
    c->due_ns = now_ns();
    enqueue(c);
    return deliver(c, head, sizeof head - 1);
}

static int end_stream(Connection *c) {
    static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    dequeue(c);
    return deliver(c, end, sizeof end - 1);
}

/* Requests ------------------------------------------------------------------------------------- */

static long number_after(const char *body, const char *name, long otherwise) {
    const char *found = strstr(body, name);
    return found == NULL ? otherwise : atol(found + strlen(name));
}

/* Answer what has come whole. 0: the peer is gone. */
static int respond(Connection *c) {
    for (;;) {
        char *head_end = memmem(c->in, c->in_size, "\r\n\r\n", 4);
        if (head_end == NULL)
            return 1;
        *head_end = 0;
        char *declared = strcasestr(c->in, "\r\ncontent-length:");
        size_t body_size = declared != NULL ? strtoul(declared + 17, NULL, 10) : 0;
        *head_end = '\r';
        char *body = head_end + 4;
        size_t whole = (body - c->in) + body_size;
        if (c->in_size < whole)
            return 1;
        int stays;
        if (strncmp(c->in, "POST ", 5) == 0) {
            char kept = body[body_size];
            body[body_size] = 0;
            if (strstr(body, "\"stream\":true") != NULL || strstr(body, "\"stream\": true") != NULL)
                stays = begin_stream(c, number_after(body, "\"n_predict\":", 16),
                                     number_after(body, "\"interval_us\":", 1000));
            else
                stays = complete(c);
            body[body_size] = kept;
        } else if (strncmp(c->in, "GET /health ", 12) == 0)
            stays = answer(c, "{\"status\":\"ok\"}", 15);
        else
            stays = answer(c, "[]", 2); /* /slots: nothing is known of any */
        c->in_size -= whole;
        memmove(c->in, c->in + whole, c->in_size);
        if (!stays)
            return 0;
    }
}

static int hear(Connection *c) {
    if (c->in_size + 65536 + 1 > c->in_room) {
        c->in_room = (c->in_size + 65536 + 1) * 2;
        c->in = realloc(c->in, c->in_room);
        if (c->in == NULL)
            die("realloc");
    }
    ssize_t got = recv(c->fd, c->in + c->in_size, c->in_room - c->in_size - 1, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN))
        return 0;
    if (got > 0) {
        c->in_size += got;
        c->in[c->in_size] = 0;
        return respond(c);
    }
    return 1;
}

static int go_on_sending(Connection *c) {
    char rest[CHUNK_MAX];
    size_t size = c->rest_size;
    memcpy(rest, c->rest, size);
    c->rest_size = 0;
    struct epoll_event wish = {.events = EPOLLIN, .data.fd = c->fd};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &wish);
    return size == 0 || deliver(c, rest, size);
}

static void meet(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        if (fd >= CONNECTIONS_MAX) {
            close(fd);
            continue;
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* in vain where it has no port */
        Connection *c = connections[fd] = calloc(1, sizeof *c);
        if (c == NULL)
            die("calloc");
        c->fd = fd;
        struct epoll_event wish = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &wish);
    }
}

/* Time ----------------------------------------------------------------------------------------- */

static void send_what_is_due(void) {
    long now = now_ns();
    while (first != NULL && first->due_ns <= now) {
        Connection *c = first;
        int stays = 1;
        dequeue(c);
        c->due_ns += c->interval_ns;
        enqueue(c);
        if (c->rest_size == 0) /* else the reader is slow: it misses this one, as a model would wait */
            stays = c->chunks_left-- > 0 ? send_chunk(c) : end_stream(c);
        if (!stays)
            leave(c);
    }
}

static int wait_for_events(struct epoll_event *events) {
    struct timespec pause, *until = NULL;
    if (first != NULL) {
        long left = first->due_ns - now_ns();
        if (left < 0)
            left = 0;
        pause.tv_sec = left / 1000000000L;
        pause.tv_nsec = left % 1000000000L;
        until = &pause;
    }
    return syscall(SYS_epoll_pwait2, poll_fd, events, EVENTS_MAX, until, NULL, 0); /* in nanoseconds */
}

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("--host");
    strcpy(address.sun_path, path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 4096) != 0)
        die("listen");
    return listener;
}

static int listen_on(const char *host, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &address.sin_addr) != 1)
        die("--host");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 4096) != 0)
        die("listen");
    return listener;
}

int main(int argc, char **argv) {
    char *host = "127.0.0.1";
    int port = 8080;
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--host") == 0)
            host = argv[++i];
        else if (strcmp(argv[i], "--port") == 0)
            port = atoi(argv[++i]);
        else if (strcmp(argv[i], "--alias") == 0)
            alias = argv[++i];
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1000UL); /* 1 µs: chunks leave one by one, not in the kernel's usual bunches */
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    /* As llama-server takes it: an address, and with a comma a socket in the file system. */
    char *path = strchr(host, ',');
    if (path != NULL)
        *path++ = 0;
    int listener = listen_on(host, port), nearer = path != NULL ? listen_at(path) : -1;
    struct epoll_event wish = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS_MAX];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &wish);
    wish.data.fd = nearer;
    if (nearer >= 0)
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, nearer, &wish);
    fprintf(stderr, "main: server is listening on http://%s:%d\n", host, port);
    for (;;) {
        int count = wait_for_events(events);
        if (count < 0 && errno != EINTR)
            die("epoll_pwait2");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener || fd == nearer) {
                meet(fd);
                continue;
            }
            Connection *c = connections[fd];
            if (c == NULL)
                continue;
            int stays = 1;
            if (events[i].events & EPOLLOUT)
                stays = go_on_sending(c);
            if (stays && events[i].events & ~EPOLLOUT)
                stays = hear(c);
            if (!stays)
                leave(c);
        }
        send_what_is_due();
    }
}
