#!/usr/bin/env python3
"""Writes the novels of the R package janeaustenr as plain text, without R.

usage: austen.py DATA_DIR OUT_DIR

DATA_DIR holds R's "lazy-load" database: Rdata.rdx, a gzipped RDS index
{name: (offset, length)}, and Rdata.rdb, the records, each a 4-byte big-endian length followed
by a zlib stream of one RDS object. A novel is one character vector, one element per line of
the printed text. OUT_DIR receives <novel>.txt (UTF-8, one line each, '\\n' ends the last).
"""

import gzip
import os
import struct
import sys
import zlib

NOVELS = ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice",
          "sensesensibility")

# SEXP types of R's serialisation format, the few that occur in such a database.
SYMBOL, PAIRLIST, CHAR, LOGICAL, INTEGER, REAL, STRING, LIST = 1, 2, 9, 10, 13, 14, 16, 19
NIL, REFERENCE = 254, 255
HAS_ATTRIBUTES, HAS_TAG = 1 << 9, 1 << 10


class RdsReader:
    """Reads one object of R's binary (XDR) serialisation, versions 2 and 3."""

    def __init__(self, data):
        if data[:2] != b"X\n":
            raise ValueError("not an XDR-serialised R object")
        self.data, self.at, self.references = data, 2, []
        version = self.integer()
        self.at += 8                          # the writer's R version, the oldest reader's
        if version == 3:
            encoding_bytes = self.integer()
            self.at += encoding_bytes
        elif version != 2:
            raise ValueError(f"serialisation version {version}: 2 or 3 is read")

    def integer(self):
        return self.array("i", 4, 1)[0]

    def array(self, letter, size, count):
        end = self.at + size * count
        if count < 0 or end > len(self.data):
            raise ValueError("R object is cut short")
        values = struct.unpack(f">{count}{letter}", self.data[self.at:end])
        self.at = end
        return values

    def item(self):
        flags = self.integer()
        kind = flags & 0xFF
        if kind == NIL:
            return None
        if kind == REFERENCE:
            return self.references[(flags >> 8) - 1]
        if kind == SYMBOL:
            self.references.append(self.item())
            return self.references[-1]
        if kind == CHAR:
            length = self.integer()           # -1 is R's NA
            return None if length == -1 else b"".join(self.array("c", 1, length)).decode("utf-8")
        if kind == PAIRLIST:
            return self.pairlist(flags)
        return self.vector(kind, flags)

    def pairlist(self, flags):
        pairs = {}
        while flags & 0xFF == PAIRLIST:
            if flags & HAS_ATTRIBUTES:
                self.item()
            tag = self.item() if flags & HAS_TAG else len(pairs)
            pairs[tag] = self.item()
            flags = self.integer()
        return pairs

    def vector(self, kind, flags):
        count = self.integer()
        if kind in (LOGICAL, INTEGER):
            values = list(self.array("i", 4, count))
        elif kind == REAL:
            values = list(self.array("d", 8, count))
        elif kind in (STRING, LIST):
            values = [self.item() for _ in range(count)]
        else:
            raise ValueError(f"R type {kind} is not expected in this database")
        names = (self.item() if flags & HAS_ATTRIBUTES else {}).get("names")
        return dict(zip(names, values)) if names else values


def novel_lines(database, offset, length):
    record = database[offset:offset + length]
    data = zlib.decompress(record[4:])
    if len(data) != struct.unpack(">I", record[:4])[0]:
        raise ValueError("a record of Rdata.rdb has another length than it states")
    return RdsReader(data).item()


def main(data_dir, out_dir):
    with gzip.open(os.path.join(data_dir, "Rdata.rdx")) as file:
        index = RdsReader(file.read()).item()["variables"]
    with open(os.path.join(data_dir, "Rdata.rdb"), "rb") as file:
        database = file.read()
    os.makedirs(out_dir, exist_ok=True)
    for novel in NOVELS:
        text = "\n".join(novel_lines(database, *index[novel])) + "\n"
        with open(os.path.join(out_dir, novel + ".txt"), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.split("\n\n")[1])
    try:
        main(sys.argv[1], sys.argv[2])
    except (OSError, ValueError, KeyError, zlib.error) as error:
        sys.exit(f"austen.py: {sys.argv[1]}: {error}")
