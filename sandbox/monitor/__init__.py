"""conmon, one per container: it holds the output, writes the log, and learns the exit status.

conmon outlives this daemon. It creates the container through the OCI runtime, is the container's
parent (a subreaper), copies output to the log in CRI format and to attached clients, and when the
process is dead writes the exit status to a file and leaves.

`conmon` starts it and talks to its control FIFO, `logfile` guards the path it writes to, `exits`
turns deaths into `Exited` values exactly once, `logs` is the grammar of log lines, `attach` its
attach socket.
"""
