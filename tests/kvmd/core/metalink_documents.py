"""Metalink documents: two as publishers make them, and builders for others."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from kvmd.core.manifest import LEAST_PRIORITY, Manifest
from kvmd.core.metalink import Selector, parse
from kvmwire.digest import Algorithm
from kvmwire.source import SourceUrl
from tests.kvmd.core.strategies import digest

BASE = SourceUrl.parse("https://images.example.org/cloud/disk.qcow2.meta4?token=secret")
SCHEMES = frozenset({"http", "https", "nfs"})
V4 = "urn:ietf:params:xml:ns:metalink"
V3 = "http://www.metalinker.org/"
ANY = Selector(digest=None, size=None, name="template")
URL = "<url>https://one.example.org/disk.qcow2</url>"
SHA_256 = digest("a").hex
MD5 = "0123456789abcdef" * 2

FEDORA = f"""<?xml version="1.0" encoding="utf-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/" type="dynamic" pubdate="Thu, 01 Jan 2026 10:00:00 GMT"
    generator="mirrormanager" xmlns:mm0="http://fedorahosted.org/mirrormanager">
 <files>
  <file name="Fedora-Cloud-Base.x86_64.qcow2">
   <mm0:timestamp>1767261600</mm0:timestamp>
   <size>583532544</size>
   <verification>
    <hash type="md5">{MD5}</hash>
    <hash type="sha1">{MD5}01234567</hash>
    <hash type="sha256">{SHA_256}</hash>
    <hash type="sha512">{SHA_256 * 2}</hash>
   </verification>
   <mm0:alternates>
    <mm0:alternate>
     <mm0:timestamp>1767200000</mm0:timestamp>
     <size>1</size>
     <verification><hash type="md5">{"0" * 32}</hash></verification>
    </mm0:alternate>
   </mm0:alternates>
   <resources maxconnections="1">
    <url protocol="rsync" type="rsync" location="DE" preference="100">rsync://mirror.example.de/fedora/Base.qcow2</url>
    <url protocol="http" type="http" location="SE" preference="98">http://mirror.example.se/fedora/Base.qcow2</url>
    <url protocol="https" type="https" location="DE" preference="100">https://mirror.example.de/fedora/Base.qcow2</url>
    <url type="bittorrent" preference="100">https://torrents.example.org/Base.torrent</url>
    <url protocol="https" type="https" location="FI">https://mirror.example.fi/fedora/Base.qcow2</url>
   </resources>
  </file>
 </files>
</metalink>
""".encode()

ISO = f"""<?xml version="1.0" encoding="UTF-8"?>
<metalink xmlns="urn:ietf:params:xml:ns:metalink">
  <generator>MirrorBrain/3.0</generator>
  <origin dynamic="true">https://download.example.org/distribution.iso.meta4</origin>
  <published>2026-01-01T10:00:00Z</published>
  <file name="../../etc/distribution.iso">
    <identity>Distribution</identity>
    <size>700000</size>
    <hash type="md5">{MD5}</hash>
    <hash type="sha-256">
      {SHA_256.upper()}
    </hash>
    <hash type="tiger">beef</hash>
    <pieces length="262144" type="sha-1">
      <hash>{"1" * 40}</hash>
      <hash>{"2" * 40}</hash>
      <hash>{"3" * 40}</hash>
    </pieces>
    <pieces length="524288" type="sha-256">
      <hash>{"4" * 64}</hash>
      <hash>{"5" * 64}</hash>
    </pieces>
    <pieces length="262144" type="sha-512">
      <hash>{"6" * 128}</hash>
    </pieces>
    <metaurl mediatype="torrent" priority="1">https://download.example.org/distribution.iso.torrent</metaurl>
    <signature mediatype="application/pgp-signature">-----BEGIN PGP SIGNATURE-----</signature>
    <url location="de" priority="2">http://two.example.org/distribution.iso?a=1&amp;b=2</url>
    <url priority="1"><!-- the nearest -->
        https://one.example.org/distribution.iso
    </url>
    <url location="nz">ftp://three.example.org/distribution.iso</url>
    <url location="nz">http://three.example.org/distribution.iso</url>
  </file>
</metalink>
""".encode()


def v4(*files: str) -> bytes:
    return f'<metalink xmlns="{V4}">{"".join(files)}</metalink>'.encode()


def file(inside: str = URL, *, name: str = "disk.qcow2") -> str:
    return f"<file name={quoteattr(name)}>{inside}</file>"


def read(document: bytes, selector: Selector = ANY, base: SourceUrl = BASE) -> Manifest:
    return parse(document, base, selector=selector, schemes=SCHEMES)


def urls(manifest: Manifest) -> list[str]:
    return [mirror.url.raw for mirror in manifest.mirrors]


def as_version_4(manifest: Manifest) -> bytes:
    hashes = "".join(f"<hash type='{one.algorithm.lower()}'>{one.hex}</hash>" for one in manifest.digests)
    pieces = ""
    if manifest.pieces is not None:
        values = "".join(f"<hash>{one.hex}</hash>" for one in manifest.pieces.digests)
        pieces = (
            f"<pieces length='{manifest.pieces.length}' type='{manifest.pieces.algorithm.lower()}'>{values}</pieces>"
        )
    mirrors = "".join(
        f"<url priority='{mirror.priority}'>{escaped(mirror.url.raw)}</url>" for mirror in manifest.mirrors
    )
    return v4(file(f"<size>{manifest.size}</size>{hashes}{pieces}{mirrors}"))


def as_version_3(manifest: Manifest) -> bytes:
    def name(algorithm: Algorithm) -> str:
        return algorithm.lower().replace("-", "")

    inside = "".join(f"<hash type='{name(one.algorithm)}'>{one.hex}</hash>" for one in manifest.digests)
    if manifest.pieces is not None:
        numbered = reversed(list(enumerate(manifest.pieces.digests)))
        values = "".join(f"<hash piece='{index}'>{one.hex}</hash>" for index, one in numbered)
        inside += (
            f"<pieces length='{manifest.pieces.length}' type='{name(manifest.pieces.algorithm)}'>{values}</pieces>"
        )
    mirrors = "".join(
        f"<url type='{mirror.url.origin.scheme}'"
        + (f" preference='{101 - mirror.priority}'" if mirror.priority != LEAST_PRIORITY else "")
        + f">{escaped(mirror.url.raw)}</url>"
        for mirror in manifest.mirrors
    )
    return (
        f"<metalink version='3.0' xmlns='{V3}'><files><file name='disk'><size>{manifest.size}</size>"
        f"<verification>{inside}</verification><resources>{mirrors}</resources></file></files></metalink>"
    ).encode()


def escaped(text: str) -> str:
    return quoteattr(text, {"'": "&apos;"})[1:-1]


SEVERAL = v4(
    file(f"<size>1</size><hash type='sha-256'>{'a' * 64}</hash><url>http://m.example/a</url>", name="a.qcow2"),
    file(f"<size>2</size><hash type='sha-256'>{'b' * 64}</hash><url>http://m.example/b</url>", name="disk.qcow2"),
    file("<size>3</size><url>http://m.example/c</url>", name="../c.iso"),
    file("<size>3</size><url>http://m.example/d</url>", name="d.iso"),
)
