/* An origin behind a slow network: serves one file over HTTP/1.1 on loopback, and lets only so much through.
 *
 * shaped [-c BYTES_PER_S] [-t BYTES_PER_S] [-r RTT_MS] PORT FILE
 *   -c  each connection: SO_MAX_PACING_RATE on the accepted socket, so TCP itself paces (it needs no fq on loopback)
 *   -t  all connections together: a chunk is sent when its turn in one common schedule has come
 *   -r  round-trip time: an answer starts one after its request (two after the first, for the handshake), and no more than
 *       WINDOW bytes are on their way a round trip. No slow start, no loss.
 * Delays are kept as times, not as bytes held back, and the bytes go out by sendfile: a relay would copy them twice on the
 * cores that the measured programs need. One thread a connection; a file, one range a request, nothing else of HTTP.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 3 << 20, /* what Linux's default tcp_rmem, 6 MiB at most, makes of a connection */
       CHUNK = 64 << 10,
       SLOTS = WINDOW / CHUNK };
static const double BURST_S = 0.01; /* how far a total rate may catch up */

static struct {
    int file;
    off_t size;
    unsigned pace;
    double total, rtt;
    pthread_mutex_t lock;
    double next; /* when the next chunk of all connections may go */
} origin = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct connection {
    int socket;
    int is_fresh;       /* has not answered yet */
    size_t have;        /* bytes in `head` */
    char head[8192];
    double asked;       /* when the next request came; 0: none has been seen */
    double sent[SLOTS]; /* when the last chunks went out, in a ring */
    unsigned chunks;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void sleep_until(double when) {
    struct timespec t = {.tv_sec = when, .tv_nsec = (when - (time_t)when) * 1e9};
    if (when > now()) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* Wait for the chunk's turn in the schedule of all connections. */
static void wait_for_turn(size_t length) {
    pthread_mutex_lock(&origin.lock);
    double earliest = now() - BURST_S, turn = origin.next > earliest ? origin.next : earliest;
    origin.next = turn + length / origin.total;
    pthread_mutex_unlock(&origin.lock);
    sleep_until(turn);
}

/* Wait, and note when meanwhile the next request arrives. */
static void wait_until(struct connection *c, double when) {
    struct pollfd readable = {.fd = c->socket, .events = POLLIN};
    double left = when > now() ? when - now() : 0;
    struct timespec most = {.tv_sec = left, .tv_nsec = (left - (time_t)left) * 1e9};
    if (!c->asked && ppoll(&readable, 1, &most, NULL) == 1) c->asked = now();
    sleep_until(when);
}

static int send_body(struct connection *c, off_t offset, off_t end) {
    while (offset < end) {
        size_t length = end - offset < CHUNK ? end - offset : CHUNK;
        if (origin.total) wait_for_turn(length);
        if (origin.rtt) {
            double *slot = &c->sent[c->chunks++ % SLOTS];
            wait_until(c, *slot + origin.rtt);
            *slot = now();
        }
        for (off_t stop = offset + length; offset < stop;)
            if (sendfile(c->socket, origin.file, &offset, stop - offset) <= 0) return 0;
    }
    return 1;
}

/* Receive a request into `head`; give its length, 0 at the end of the connection. */
static size_t receive_request(struct connection *c) {
    char *end;
    for (;;) {
        c->head[c->have] = 0;
        if ((end = strstr(c->head, "\r\n\r\n"))) break;
        ssize_t got = recv(c->socket, c->head + c->have, sizeof c->head - 1 - c->have, 0);
        if (got <= 0) return 0;
        c->have += got;
    }
    if (!c->asked) c->asked = now();
    return end + 4 - c->head;
}

/* Write the head of the answer to `request` into `text`; set the range that it asks for, 0 bytes where there is none. */
static int write_head(const char *request, char *text, size_t most, off_t *offset, off_t *end) {
    intmax_t first = 0, last = origin.size - 1;
    const char *range = strcasestr(request, "\r\nRange: bytes=");
    if (range) sscanf(range + 15, "%jd-%jd", &first, &last);
    if (last >= origin.size) last = origin.size - 1;
    if (first < 0 || first > last) return snprintf(text, most, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
    *offset = first;
    *end = last + 1;
    int length = snprintf(text, most, "HTTP/1.1 %s\r\nContent-Length: %jd\r\nContent-Type: application/octet-stream\r\n",
                          range ? "206 Partial Content" : "200 OK", last - first + 1);
    if (range)
        length += snprintf(text + length, most - length, "Content-Range: bytes %jd-%jd/%jd\r\n", first, last,
                           (intmax_t)origin.size);
    return length + snprintf(text + length, most - length, "Accept-Ranges: bytes\r\nETag: \"image\"\r\n\r\n");
}

static int answer(struct connection *c) {
    size_t length = receive_request(c);
    if (!length) return 0;
    char text[512];
    off_t offset = 0, end = 0;
    c->head[length - 1] = 0;
    int head = write_head(c->head, text, sizeof text, &offset, &end);
    memmove(c->head, c->head + length, c->have -= length);
    double due = c->asked + origin.rtt * (1 + c->is_fresh);
    if (!c->have) c->asked = 0;
    c->is_fresh = 0;
    if (origin.rtt) wait_until(c, due);
    return send(c->socket, text, head, MSG_MORE | MSG_NOSIGNAL) == head && send_body(c, offset, end);
}

static void *serve(void *given) {
    struct connection *c = given;
    while (answer(c)) continue;
    close(c->socket);
    free(c);
    return NULL;
}

int main(int count, char **words) {
    int option, one = 1;
    while ((option = getopt(count, words, "c:t:r:")) != -1) switch (option) {
        case 'c': origin.pace = strtoul(optarg, NULL, 10); break;
        case 't': origin.total = atof(optarg); break;
        case 'r': origin.rtt = atof(optarg) / 1000; break;
        default: return 2;
        }
    struct stat status;
    if (count - optind != 2) return 2;
    if ((origin.file = open(words[optind + 1], O_RDONLY)) < 0 || fstat(origin.file, &status)) return 1;
    origin.size = status.st_size;
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[optind]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128)) return 1;
    for (int accepted; (accepted = accept(listener, NULL, NULL)) >= 0;) {
        struct connection *c = calloc(1, sizeof *c);
        pthread_t thread;
        c->socket = accepted;
        c->is_fresh = 1;
        setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (origin.pace && setsockopt(accepted, SOL_SOCKET, SO_MAX_PACING_RATE, &origin.pace, sizeof origin.pace)) return 1;
        if (pthread_create(&thread, NULL, serve, c)) return 1;
        pthread_detach(thread);
    }
    return 1;
}
