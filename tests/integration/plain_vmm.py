#!/usr/bin/python3
"""A VMM without a VM that maps its image itself, as one does where no page server is: it touches pages in the order that it is told.

    plain_vmm.py IMAGE [--pieces N] [--shared] [--pages 5,3,w9] [--gate FIFO] [--then exit|stay] [--exit-status N]

Of a page that is named with 'w' a byte is written; the others are read, and must begin as the image does. With --gate it waits, after it has mapped
the image, until the FIFO can be opened for reading and ends.
"""
import argparse
import mmap
import os
import signal
import sys

PAGE = mmap.PAGESIZE


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("--pieces", type=int, default=1)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--pages", default="")
    parser.add_argument("--gate")
    parser.add_argument("--then", choices=["exit", "stay"], default="exit")
    parser.add_argument("--exit-status", type=int, default=0)
    args = parser.parse_args()

    fd = os.open(args.image, os.O_RDWR if args.shared else os.O_RDONLY)
    size = os.fstat(fd).st_size
    piece = size // args.pieces // PAGE * PAGE
    flags = mmap.MAP_SHARED if args.shared else mmap.MAP_PRIVATE
    memory, apart = [], []
    for number in range(args.pieces):
        start = number * piece
        length = piece if number + 1 < args.pieces else size - start
        memory.append(mmap.mmap(fd, length, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=start))
        # So that the kernel doesn't put the next one where the two would be one.
        apart.append(mmap.mmap(-1, PAGE))
    if args.gate:
        with open(args.gate, "rb") as gate:
            gate.read()

    for word in filter(None, args.pages.split(",")):
        page = int(word.lstrip("w"))
        number = min(page * PAGE // piece, args.pieces - 1)
        offset = page * PAGE - number * piece
        if word.startswith("w"):
            memory[number][offset + 8] = 1
        elif memory[number][offset:offset + 8] != os.pread(fd, 8, page * PAGE):
            sys.exit(f"page {page} has wrong bytes")
    print("touched", flush=True)
    if args.then == "stay":
        signal.pause()
    sys.exit(args.exit_status)


if __name__ == "__main__":
    main()
