"""Numbers about the daemon and about what it runs.

`instruments` holds the daemon's own counters and histograms; other packages are handed an object
with the methods they need (`rpc`, `operation`, `pull` ...) and know nothing of Prometheus.
`endpoint` serves them to a scraper. What pods and containers use is looked at by `sampler` (control
groups and networks) and `disk_usage` (writable layers), both in threads of their own;
`followed` is what it keeps of each group. `cgroup_stats`, `cgroup_detail`, `pressure` and
`network_stats` know what files mean, `descriptors` the names of CRI metrics.

Nothing here imports another engine.
"""
