"""Exec, attach and port-forward: what a client of the kubelet sees inside a container.

The CRI call answers with a URL of our own server; the client (kubelet, crictl) connects there and
upgrades the connection to SPDY/3.1 or WebSocket. The token in the URL is the only authentication:
random, shown once, dead after a minute, bound to what was asked for.

    tokens       one-use tickets                        no I/O
    http1        the one HTTP request before the upgrade  no I/O, on h11
    negotiate    which protocol a request gets, or why none  no I/O
    spdy_frames  SPDY/3.1 frames, header blocks          no I/O
    spdy         a SPDY/3.1 session as its server sees it  no I/O
    websocket    channels in WebSocket messages          no I/O, on wsproto
    verdict      exit status and terminal sizes as JSON  no I/O
    wire         a TCP or TLS connection: bounded both ways
    channels     streams over either protocol: read, send, finish, reset
    links        SPDY and WebSocket behind the same streams
    backend      what the server needs of the node, as protocols
    commands     a session of exec or attach
    forwards     a session of port-forward
    tls          a certificate of our own making
    server       the façade: listens, hands out URLs, runs sessions

Bytes are bounded before anything is stored: a frame's length is checked when its first eight bytes
are there, its data is handed on as it comes and never collected; header blocks are decompressed up
to a limit. Back-pressure: what a container does not read stops the reading from its client, what a
client does not read stops the reading from the container. Nothing is lost at the end: outputs are
read to their end, then the exit status is sent, then the connection is closed once the client has
had time to take it.
"""
