/* A web server for conformance tests: every request gets "200 OK" and one line.
 *
 * Stands in for two real servers, so it keeps the habits that the tests look at: the process title
 * of a master process (argument --title), a pid file (--pid-file), port 80 unless told otherwise.
 * Listens on IPv6 and IPv4 at once where the kernel has both. Ends at SIGTERM, SIGINT and SIGQUIT,
 * which the first process of a pid namespace would ignore by default.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void leave(int signal_number) { _exit(signal_number == SIGQUIT ? 0 : 128 + signal_number); }

static int listen_on(unsigned short port) {
  int one = 1, zero = 0;
  int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0) {
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (bind(fd, (struct sockaddr *)&any6, sizeof any6) == 0 && listen(fd, 16) == 0) return fd;
    close(fd);
  }
  fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&any4, sizeof any4) < 0 || listen(fd, 16) < 0) {
    perror("cannot listen");
    exit(1);
  }
  return fd;
}

int main(int argc, char **argv) {
  const char *title = NULL, *pid_file = NULL;
  unsigned short port = 80;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--port") == 0) port = (unsigned short)atoi(argv[i + 1]);
    if (strcmp(argv[i], "--title") == 0) title = argv[i + 1];
    if (strcmp(argv[i], "--pid-file") == 0) pid_file = argv[i + 1];
  }
  if (title != NULL && strcmp(argv[0], title) != 0) {
    /* The title is what /proc/PID/cmdline begins with. Starting over under the real path, not
     * /proc/self/exe, keeps the short name that pidof looks for. */
    const char *program = argv[0];
    argv[0] = (char *)title;
    execv(program, argv);
    perror(program);
    return 1;
  }
  signal(SIGTERM, leave);
  signal(SIGINT, leave);
  signal(SIGQUIT, leave);
  signal(SIGPIPE, SIG_IGN);
  int listener = listen_on(port);
  if (pid_file != NULL) {
    FILE *file = fopen(pid_file, "w");
    if (file != NULL) {
      fprintf(file, "%d\n", getpid());
      fclose(file);
    }
  }
  printf("%s: listening on port %d\n", program_invocation_short_name, port);
  fflush(stdout);
  static const char answer[] =
      "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n"
      "Connection: close\r\n\r\nWelcome\n";
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) continue;
    struct timeval patience = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    char request[4096];
    if (read(fd, request, sizeof request) > 0 && write(fd, answer, sizeof answer - 1) < 0) {
      /* the client left; nothing to do */
    }
    shutdown(fd, SHUT_WR);
    while (read(fd, request, sizeof request) > 0) {
    }
    close(fd);
  }
}
