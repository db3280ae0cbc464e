"""A hostile HTTP/1.1 origin that lies at byte level, driven by the query of the URL that is asked for.

``server.add("disk.qcow2", content)`` registers a content; ``server.url("disk.qcow2", cut=100_000)`` is a URL that
behaves as told. Without parameters the server is honest: ranges, strong ETag, Last-Modified, If-Range, If-Match,
HEAD, keep-alive. Parameters combine where that makes sense; an unknown or unreadable one is answered with 500 and fails
the test when the server closes.

``server.add("disk.qcow2", content, status=429)`` orders the same for every URL of the name.

**Windows**: any value may end with ``@FROM-TO``, ``@FROM-`` or ``@N``: it then holds only for these requests, counted
from 1 for each target (path and query: so each URL is a mirror of its own). ``status=403@4-`` is a presigned URL that
expires after three requests, ``status=503@1-3`` a service that comes up late. A parameter may be given more than once,
with different windows; the first that holds wins.

====================  =============================================================================================
parameter             what the server does
====================  =============================================================================================
**answer**
status=S              answers S with a short text body; 416 also says ``Content-Range: bytes */TOTAL``
retry_after=V         adds Retry-After: V as given; ``date:N`` is the HTTP date N seconds from now
head=S                answers HEAD with S
require=NAME:VALUE    401 unless the request has this header
connections=N         503 when more than N requests for this name are being answered at once
html=1                200 and the HTML page of a login portal, whatever was asked
drop=fin|rst          closes or resets the connection without an answer
mirror=X              nothing: makes another target of the same content. So do ``token`` and names with ``X-``
**redirects**
redirect=N            a chain of N hops that ends at the content; ``loop`` never ends
redirect_to=URL       to this location, as given (other origin, file:, http: from https)
redirect_status=S     with this status instead of 302
**identity**
validators=V          ``both`` (default), ``strong`` (ETag only), ``weak`` (W/ ETag only), ``date`` (Last-Modified
                      only), ``none``
entity=V              ``retagged``: other validators, same bytes; ``swapped``: other bytes and validators;
                      ``swapped_silently``: other bytes, same validators. Other bytes: ``server.add(..., swapped=...)``
preconditions=ignore  ignores If-Range and If-Match
corrupt=OFFSET        this byte of the content is wrong (all its bits flipped); ``corrupt=OFFSET:N``: N bytes
**ranges**
ranges=off            ignores Range: always 200 and the whole
range_reply=multipart answers a range with multipart/byteranges
range_cap=N           206 with at most N bytes, said honestly
shift=N               206 for a range that begins N bytes later than asked, said honestly
total=N               claims a content of N bytes: in Content-Length of 200, in Content-Range of 206
**framing**
length=N              Content-Length: N, whatever the body has
extra=N               N bytes more than Content-Length says, then closes
encoding=gzip         Content-Encoding: gzip, body compressed; another name is only claimed
framing=V             ``chunked`` (no length), ``close`` (neither), ``badchunk`` (second chunk size is not hexadecimal),
                      ``both`` (Content-Length and Transfer-Encoding)
media_type=T          Content-Type: T of the content, instead of application/octet-stream
header=NAME:VALUE     one more header of any answer; a bar stands between several
header_bytes=N        one more header whose value has N bytes
header_count=N        N more headers
delay=S               waits S seconds before it answers
**time and faults** of replies that carry content; bytes are those of the body, a shorter body meets no fault
header_trickle=S      sends status line and headers one byte each S seconds
trickle=S             sends the body one byte each S seconds
rate=N                sends the body at N bytes/s
cut=N                 closes the connection after N bytes; ``cut=0`` never makes progress
cut_fraction=F        closes the connection after this part of the body, 0 to 1
reset=N               resets the connection (RST) when the client's system has taken N bytes
stall=N               sends nothing after N bytes, with the connection open, until the client leaves
hold=N                as stall, but goes on after ``server.release(name)``
====================  =============================================================================================
"""

from __future__ import annotations

from tests.support.contents import BytesContent, Content, GeneratedContent, SparseContent, hexdigest
from tests.support.hostile.exchange import Exchange
from tests.support.hostile.server import HostileServer

__all__ = [
    "BytesContent",
    "Content",
    "Exchange",
    "GeneratedContent",
    "HostileServer",
    "SparseContent",
    "hexdigest",
]
