"""`podwright check`: what this node has and lacks for the configuration, and what to do about it.

Every module looks at one part (`machine`, `lsm`, `groups`, `programs`, `network`) and returns
findings; nothing is changed on the node but for probes that undo themselves (a small overlay mount,
a control group), and those only as root. `examine` puts the parts together.
"""
