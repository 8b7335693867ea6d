"""The OCI runtime: the program that turns a bundle into a container and then leaves.

`driver` is the manual (what each step means, how it can fail), `command` holds the pure parts
(argument lists, reading what the program logs), `crun` runs them, `written` reads the files they
leave. crun and runc share one command line, so there is one implementation; what differs between
them is data.

The engine keeps to three rules, each learnt from somebody's outage:

- The runtime's state is one source of truth among three (with the pidfd of the first process and
  the exit file), never the only one: it calls a zombie "running", and a killed runtime leaves a
  state directory that `state` cannot read.
- `delete --force` answers 0 and yet leaves cgroup directories and hook processes behind, so cgroups
  are swept by us afterwards; and it signals the pid in its file, so it is only run once that pid is
  known to be dead or ours.
- Nothing of a pod reaches the command line but ids we made ourselves.
"""
