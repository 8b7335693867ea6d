/* Prints the effective user id. Installed set-user-id root: with no_new_privs that bit is ignored. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %d\n", (int)geteuid());
  return 0;
}
