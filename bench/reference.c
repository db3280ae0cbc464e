/* What download and SHA-256 cost at least on this machine: receive, write, hash, and nothing else.
 *
 * reference [-n CONNECTIONS] [-c CA_FILE] [-f] URL FILE SHA256
 *   -f  fdatasync the file before the end
 *
 * CONNECTIONS threads take segments of the file in order; each asks for one with an HTTP/1.1 range request, receives it into
 * one buffer and writes from there. One more thread reads back what is contiguous from the start and hashes it.
 * No retries, no checkpoints, no validators: it is a limit to compare with, not a downloader. Exits 0 only with the right digest.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SEGMENT = 16 << 20, BUFFER = 256 << 10, MAX_CONNECTIONS = 64 };

struct connection {
    int socket;
    SSL *tls; /* NULL: plain */
    char *buffer;
};

static struct {
    char host[64], path[1024];
    int port;
    SSL_CTX *tls; /* NULL: plain */
    int file;
    off_t size;
    pthread_mutex_t lock;
    pthread_cond_t grown;
    off_t *filled; /* bytes written of each segment, from its start */
    off_t next;    /* first segment that nobody has taken */
} job = {.lock = PTHREAD_MUTEX_INITIALIZER, .grown = PTHREAD_COND_INITIALIZER};

static void die(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("reference: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    exit(1);
}

static void open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(job.port)};
    int one = 1;
    if (inet_pton(AF_INET, job.host, &address.sin_addr) != 1) die("%s is not an IPv4 address", job.host);
    c->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->socket, (struct sockaddr *)&address, sizeof address)) die("connect to port %d: %m", job.port);
    setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->buffer = malloc(BUFFER);
    c->tls = NULL;
    if (!job.tls) return;
    c->tls = SSL_new(job.tls);
    SSL_set_fd(c->tls, c->socket);
    X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(c->tls), job.host);
    if (SSL_connect(c->tls) != 1) die("TLS with port %d failed", job.port);
}

static size_t receive(struct connection *c, char *into, size_t most) {
    ssize_t got = c->tls ? SSL_read(c->tls, into, most) : recv(c->socket, into, most, 0);
    if (got <= 0) die("the server closed the connection");
    return got;
}

/* Ask for bytes first to last; leave what came of the body at the start of the buffer, give its length and the file's size. */
static size_t request(struct connection *c, off_t first, off_t last, off_t *size) {
    char text[1400], *end, *range;
    size_t length = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nRange: bytes=%jd-%jd\r\n\r\n", job.path,
                             job.host, job.port, (intmax_t)first, (intmax_t)last);
    ssize_t sent = c->tls ? SSL_write(c->tls, text, length) : send(c->socket, text, length, MSG_NOSIGNAL);
    if (sent != (ssize_t)length) die("the request could not be sent");
    size_t have = 0;
    do {
        have += receive(c, c->buffer + have, 4095 - have);
        c->buffer[have] = 0;
        end = strstr(c->buffer, "\r\n\r\n");
    } while (!end && have < 4095);
    if (!end || strncmp(c->buffer, "HTTP/1.1 206", 12)) die("expected status 206, got %.12s", c->buffer);
    range = strcasestr(c->buffer, "\r\nContent-Range: bytes ");
    if (!range || strtoll(range + 23, NULL, 10) != first || !strchr(range, '/')) die("wrong Content-Range");
    *size = strtoll(strchr(range, '/') + 1, NULL, 10);
    have -= end + 4 - c->buffer;
    memmove(c->buffer, end + 4, have);
    return have;
}

static void store(off_t segment, off_t offset, const char *from, size_t length) {
    if (pwrite(job.file, from, length, offset) != (ssize_t)length) die("pwrite: %m");
    pthread_mutex_lock(&job.lock);
    job.filled[segment] += length;
    pthread_cond_signal(&job.grown);
    pthread_mutex_unlock(&job.lock);
}

static void *download(void *unused) {
    struct connection c;
    open_connection(&c);
    for (;;) {
        pthread_mutex_lock(&job.lock);
        off_t segment = job.next++;
        pthread_mutex_unlock(&job.lock);
        off_t offset = segment * SEGMENT, end = offset + SEGMENT < job.size ? offset + SEGMENT : job.size, size;
        if (offset >= job.size) break;
        size_t have = request(&c, offset, end - 1, &size);
        while (offset < end) {
            size_t want = end - offset < BUFFER ? end - offset : BUFFER;
            while (have < want) have += receive(&c, c.buffer + have, want - have);
            store(segment, offset, c.buffer, have);
            offset += have;
            have = 0;
        }
    }
    close(c.socket);
    return unused;
}

/* Wait until there is more than `hashed` contiguous from the start, and give how far that goes. */
static off_t frontier(off_t hashed) {
    off_t segment = hashed / SEGMENT, reach;
    pthread_mutex_lock(&job.lock);
    while ((reach = segment * SEGMENT + job.filled[segment]) <= hashed) pthread_cond_wait(&job.grown, &job.lock);
    pthread_mutex_unlock(&job.lock);
    return reach;
}

static void *hash(void *digest) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    char *buffer = malloc(BUFFER);
    unsigned char value[32];
    EVP_DigestInit_ex(context, EVP_sha256(), NULL);
    for (off_t hashed = 0, reach = 0; hashed < job.size;) {
        if (reach <= hashed) reach = frontier(hashed);
        ssize_t got = pread(job.file, buffer, reach - hashed < BUFFER ? reach - hashed : BUFFER, hashed);
        if (got <= 0) die("pread: %m");
        EVP_DigestUpdate(context, buffer, got);
        hashed += got;
    }
    EVP_DigestFinal_ex(context, value, NULL);
    for (int i = 0; i < 32; i++) sprintf((char *)digest + 2 * i, "%02x", value[i]);
    return NULL;
}

static void parse_url(const char *url, const char *ca) {
    int is_tls = !strncmp(url, "https://", 8);
    if (sscanf(url + (is_tls ? 8 : 7), "%63[^:/]:%d%1023s", job.host, &job.port, job.path) != 3)
        die("expected http(s)://IP:PORT/PATH, got %s", url);
    if (!is_tls) return;
    job.tls = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(job.tls, SSL_VERIFY_PEER, NULL);
    if (!ca || SSL_CTX_load_verify_locations(job.tls, ca, NULL) != 1) die("-c must name the CA's file");
}

int main(int count, char **words) {
    int option, connections = 1, is_synced = 0;
    const char *ca = NULL;
    while ((option = getopt(count, words, "n:c:f")) != -1) switch (option) {
        case 'n': connections = atoi(optarg); break;
        case 'c': ca = optarg; break;
        case 'f': is_synced = 1; break;
        default: return 2;
        }
    if (count - optind != 3 || connections < 1 || connections > MAX_CONNECTIONS)
        die("needs URL FILE SHA256, 1 to 64 connections");
    char **given = words + optind, digest[65] = "";
    parse_url(given[0], ca);
    struct connection probe;
    open_connection(&probe);
    request(&probe, 0, 0, &job.size);
    close(probe.socket);
    job.file = open(given[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (job.file < 0) die("%s: %m", given[1]);
    job.filled = calloc(job.size / SEGMENT + 1, sizeof *job.filled);
    pthread_t threads[MAX_CONNECTIONS], hasher;
    for (int i = 0; i < connections; i++) pthread_create(&threads[i], NULL, download, NULL);
    pthread_create(&hasher, NULL, hash, digest);
    for (int i = 0; i < connections; i++) pthread_join(threads[i], NULL);
    if (is_synced && fdatasync(job.file)) die("fdatasync: %m");
    pthread_join(hasher, NULL);
    if (strcmp(digest, given[2])) die("expected %s, got %s", given[2], digest);
    return 0;
}
