#!/usr/bin/env python3
"""Devices that publish over MQTT 3.1.1 with QoS 1, and count what is acknowledged.

    load.py HOST:PORT EVENTS [--devices 20] [--in-flight 50] [--rate 0] [--first 0]

Payloads are 256 bytes whose values do not repeat; `msg_id` is DEVICE-NUMBER. With --rate, so many events a second go out over all
devices; without, each device sends as fast as it is acknowledged. Prints one line of JSON. Ends with an error where a connection
ends before everything is acknowledged.
"""

import argparse
import json
import random
import socket
import struct
import threading
import time


def packet(device, number, randoms):
    topic = b"plant/line-1/m%02d/state" % device
    body = (
        '{"msg_id":"%02d-%08d","ts":"2026-11-25T06:%02d:%02dZ","state":"%s","temperature":%.3f,"count":%d,"order":"WH/MO/%05d","trace":"'
        % (device, number, number // 60 % 60, number % 60, randoms.choice(("running", "idle", "fault")),
           randoms.uniform(0, 200), randoms.randrange(10**7), randoms.randrange(10**5))
    ).encode()
    body += ("%0*x" % (254 - len(body), randoms.getrandbits(4 * (254 - len(body))))).encode() + b'"}'
    rest = struct.pack(">H", len(topic)) + topic + struct.pack(">H", number % 65535 + 1) + body
    return bytes((0x32, len(rest) & 0x7F | 0x80, len(rest) >> 7)) + rest


class Device(threading.Thread):
    def __init__(self, number, first, count, options):
        super().__init__(daemon=True)
        randoms = random.Random(number)
        self.packets = [packet(number, first + index, randoms) for index in range(count)]
        self.number, self.options, self.acked, self.waits, self.error = number, options, 0, [], None

    def run(self):
        try:
            self.publish()
        except OSError as error:
            self.error = str(error)

    def publish(self):
        host, port = self.options.address.rsplit(":", 1)
        client = b"load-%d" % self.number
        with socket.create_connection((host, int(port))) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rest = b"\0\4MQTT\4\2\0\0" + struct.pack(">H", len(client)) + client
            stream.sendall(bytes((0x10, len(rest))) + rest)
            if stream.recv(4) != b"\x20\2\0\0":
                raise OSError("CONNECT is refused")
            rate = self.options.rate / self.options.devices
            sent, started, begun, partial = 0, [], time.monotonic(), 0
            while self.acked < len(self.packets):
                until = min(self.acked + self.options.in_flight, len(self.packets))
                now = time.monotonic()
                if rate:
                    until = min(until, int((now - begun) * rate) + 1)
                if sent < until:
                    stream.sendall(b"".join(self.packets[sent:until]))
                    started += [now] * (until - sent)
                    sent = until
                stream.settimeout(0.01 if rate and sent < len(self.packets) else 60)
                try:
                    read = stream.recv(65536)
                except TimeoutError:
                    if rate and sent < len(self.packets):
                        continue
                    raise
                if not read:
                    raise OSError("the connection has ended")
                partial += len(read)
                now = time.monotonic()
                self.waits += [now - at for at in started[self.acked : self.acked + partial // 4 : 10]]
                self.acked += partial // 4
                partial %= 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("events", type=int)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    devices = [Device(n, options.first, options.events // options.devices, options) for n in range(options.devices)]
    begun = time.monotonic()
    for device in devices:
        device.start()
    for device in devices:
        device.join()
    took = time.monotonic() - begun
    errors = [device.error for device in devices if device.error]
    waits = sorted(wait for device in devices for wait in device.waits)
    acked = sum(device.acked for device in devices)
    at = lambda share: round(waits[int((len(waits) - 1) * share)] * 1000, 1) if waits else None
    print(json.dumps({"acked": acked, "seconds": round(took, 2), "per_second": round(acked / took),
                      "ack_ms": [at(0.5), at(0.99)], "errors": errors}))
    return 1 if errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
