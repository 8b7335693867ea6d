"""What confines a container's process: capabilities, system call filter, LSM labels.

Pure: each module turns a request and facts about the host into OCI values. The rule they share: a
request that cannot be met is an error that names it, never a weaker container. What the *daemon*
chooses (defaults) is narrowed silently to what the host has; what the *client* asked for is not.
"""
