"""Fetching from registries: the distribution protocol's pull half, over HTTP.

    client.py      the flow of a pull: what is asked, which answers are believed
      order.py     which hosts are asked, in which order, how often
      transfer.py  one blob on its way to its sink: sizes, stalls, going on after a break
        pieces.py    the same over several connections at once, in the memory of room.py
        patience.py  what counts as a host's time
      exchange.py  one request to one host: authorization, redirects, answers by status
        auth.py      challenge -> Authorization header; tokens kept until they expire
        challenge.py   WWW-Authenticate grammar (pure)
        transport.py one HTTP exchange on the wire: the protocol
          http.py      its adapter: places, rules of TLS, what a request must have
          connections.py  made, kept for the next request, closed; tunnels through proxies
            answer.py    one request and its answer over one connection, by h11
            wire.py      the bytes of one connection, within bounds
            dial.py      to whichever address of a name answers
          failures.py  what went wrong, in our words; proxying.py where a proxy is in between
      hosts.py     certs.d/HOST/hosts.toml -> endpoints in order (hostfields.py reads a table)
      origins.py   who may be talked to and who may see a secret: scheme, host, port (pure)
      retry.py     when to ask again and how long to wait (pure)
      source.py    what the rest of the image service sees

Three rules hold everywhere. A secret goes to the registry that the reference names and to its token
server, never to a mirror that the secret does not name, never along a redirect to another origin,
never over a downgrade to plain HTTP. What is received is bounded before it is read. Of a URL
only its origin reaches a message or a log, and a foreign exception does not leave this package.
"""
