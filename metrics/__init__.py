"""Numbers about the daemon and about what it runs.

`instruments` holds the daemon's own counters and histograms; other packages are handed an object
with the methods they need (`rpc`, `operation`, `pull` ...) and know nothing of Prometheus.
`endpoint` serves them to a scraper. Nothing here imports another engine.
"""
