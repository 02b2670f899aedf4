"""Modbus devices of pymodbus, with a line between them and the gateway that can be disturbed.

    simulator.py SPEC

SPEC is JSON: transport (tcp, tls, rtu-tcp, rtu), units, and the registers of all units:
coils, discrete (lists of 0 and 1), holding, input (lists of registers), each from address 0.
Prints {"port": N} or {"path": "/dev/pts/N"}, then obeys lines on standard input:

    set UNIT TABLE ADDRESS VALUE...   change what a unit says (TABLE: coil, discrete, holding, input)
    slow SECONDS                      every answer takes so long from now on
    hold SECONDS                      the next answer takes so long (rtu, rtu-tcp)
    lose N                            the next N answers are lost (rtu, rtu-tcp)
    garbage N                         the next N answers are random bytes of the same length
    noise N                           the next answer comes behind N random bytes
    refuse CODE                       every request is refused with this exception; 0 for none
    asked                             prints how many requests each unit has had, as JSON
    read UNIT TABLE ADDRESS           prints what stands there
"""

import asyncio
import functools
import json
import os
import pty
import random
import ssl
import sys
import threading
import time

from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusTlsServer
from pymodbus.simulator import DataType, SimData, SimDevice

TABLES = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
KIND = {1: 1, 5: 1, 15: 1, 2: 2, 3: 3, 6: 3, 16: 3, 4: 4}


class World:
    def __init__(self):
        self.slow = 0.0
        self.hold = 0.0
        self.lose = 0
        self.garbage = 0
        self.noise = 0
        self.refuse = 0
        self.asked = {}
        self.sets = {}
        self.memory = {}
        self.units = set()

    def disturb(self, data, unit):
        """What becomes of an answer on its way."""
        if unit not in self.units:
            # pymodbus answers for units that are not there.
            return b""
        if self.garbage > 0:
            self.garbage -= 1
            return random.randbytes(len(data))
        if self.noise > 0:
            count, self.noise = self.noise, 0
            return random.randbytes(count) + data
        return data

    async def action(self, unit, function, start, _address, _count, registers, _values):
        self.asked[unit] = self.asked.get(unit, 0) + 1
        kind = KIND.get(function, 0)
        self.memory[(unit, kind)] = (start, registers)
        for address, value in self.sets.pop((unit, kind), []):
            if kind <= 2:
                # Sixteen bits a register, the lowest first.
                at, bit = divmod(address, 16)
                registers[at - start] = registers[at - start] & ~(1 << bit) | (value << bit)
            else:
                registers[address - start] = value
        if self.slow > 0:
            await asyncio.sleep(self.slow)
        return ExcCodes(self.refuse) if self.refuse else None


def pack(bits):
    bits = bits + [0] * (-len(bits) % 16)
    return [sum(bit << n for n, bit in enumerate(bits[at : at + 16])) for at in range(0, len(bits), 16)]


def devices(spec, world):
    def bits(name):
        return [SimData(0, values=pack(spec.get(name, [0])), datatype=DataType.BITS)]

    def registers(name):
        return [SimData(0, values=spec.get(name, [0]), datatype=DataType.REGISTERS)]

    return [
        SimDevice(
            id=unit,
            simdata=(bits("coils"), bits("discrete"), registers("holding"), registers("input")),
            action=functools.partial(world.action, unit),
        )
        for unit in spec["units"]
    ]


def pump(source, sink, disturb=None):
    """Carries bytes until the process ends; a side that is closed for a while loses them."""
    while True:
        try:
            data = os.read(source, 4096)
        except OSError:
            time.sleep(0.002)
            continue
        if disturb is not None:
            data = disturb(data)
        if data:
            try:
                os.write(sink, data)
            except OSError:
                pass


def serial_line(world):
    """A pair of pseudo terminals: the path that the gateway opens, and the one of the devices."""
    near, near_slave = pty.openpty()
    far, far_slave = pty.openpty()
    paths = os.ttyname(near_slave), os.ttyname(far_slave)
    for fd in (near_slave, far_slave):
        raw(fd)
    os.close(near_slave)

    def answers(data):
        if world.lose > 0:
            world.lose -= 1
            return b""
        if world.hold > 0:
            wait, world.hold = world.hold, 0.0
            time.sleep(wait)
        return world.disturb(data, data[0])

    threading.Thread(target=pump, args=(near, far), daemon=True).start()
    threading.Thread(target=pump, args=(far, near, answers), daemon=True).start()
    return paths


def raw(fd):
    import tty

    tty.setraw(fd)


def obey(line, world):
    words = line.split()
    match words:
        case ["set", unit, table, address, *values]:
            key = (int(unit), TABLES[table])
            changes = [(int(address) + n, int(value)) for n, value in enumerate(values)]
            world.sets.setdefault(key, []).extend(changes)
        case ["slow", seconds]:
            world.slow = float(seconds)
        case ["hold", seconds]:
            world.hold = float(seconds)
        case ["lose", count]:
            world.lose = int(count)
        case ["garbage", count]:
            world.garbage = int(count)
        case ["noise", count]:
            world.noise = int(count)
        case ["refuse", code]:
            world.refuse = int(code)
        case ["asked"]:
            print(json.dumps(world.asked), flush=True)
        case ["read", unit, table, address]:
            # What nobody has asked for is not known.
            start, registers = world.memory.get((int(unit), TABLES[table]), (0, None))
            print("unread" if registers is None else registers[int(address) - start], flush=True)
        case _:
            raise ValueError(line)
    if words[0] not in ("asked", "read"):
        print("done", flush=True)


async def tcp_bridge(path_fd):
    """A serial device server: what a pseudo terminal carries, over TCP, for one client at a time."""
    current = {"writer": None}

    def from_line():
        try:
            data = os.read(path_fd, 4096)
        except OSError:
            return
        if current["writer"] is not None:
            current["writer"].write(data)

    asyncio.get_running_loop().add_reader(path_fd, from_line)

    async def client(reader, writer):
        current["writer"] = writer
        while data := await reader.read(4096):
            os.write(path_fd, data)
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


async def main():
    spec = json.loads(sys.argv[1])
    world = World()
    units = devices(spec, world)
    kind = spec["transport"]
    world.units = set(spec["units"])
    trace = lambda is_sending, data: world.disturb(data, data[6]) if is_sending else data
    options = {"ignore_missing_devices": True}
    if kind in ("tcp", "tls"):
        address = ("127.0.0.1", spec["port"])
        if kind == "tcp":
            server = ModbusTcpServer(units, address=address, trace_packet=trace, **options)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(spec["cert"], spec["key"])
            context.load_verify_locations(spec["ca"])
            context.verify_mode = ssl.CERT_REQUIRED
            # Modbus/TCP Security keeps the header of Modbus/TCP.
            server = ModbusTlsServer(units, framer=FramerType.SOCKET, address=address, sslctx=context, **options)
        await server.serve_forever(background=True)
        place = {"port": spec["port"]}
    else:
        near, far = serial_line(world)
        server = ModbusSerialServer(units, port=far, baudrate=115200, **options)
        await server.serve_forever(background=True)
        place = {"path": near}
        if kind == "rtu-tcp":
            fd = os.open(near, os.O_RDWR | os.O_NOCTTY)
            raw(fd)
            place = {"port": await tcp_bridge(fd)}
    print(json.dumps(place), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        obey(line.strip(), world)


asyncio.run(main())
