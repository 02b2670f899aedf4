"""aiomqtt against a gateway."""

import asyncio
import socket

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from checks import *

checks = Checks()


def peer(who, version, keeps=False, will=None, login=False, tls=False):
    options = {}
    if version == 5:
        options["properties"] = Properties(PacketTypes.CONNECT)
        options["properties"].SessionExpiryInterval = 600 if keeps else 0
        options["clean_start"] = not keeps
        options["protocol"] = aiomqtt.ProtocolVersion.V5
    else:
        options["clean_session"] = not keeps
        options["protocol"] = aiomqtt.ProtocolVersion.V311
    if will:
        options["will"] = aiomqtt.Will(will, payload(who, 99), 1)
    if login:
        options |= {"username": USER, "password": PASSWORD}
    if tls:
        options["tls_params"] = aiomqtt.TLSParameters(ca_certs=CA, certfile=CERT, keyfile=KEY)
    port = TLS_PORT if tls else LOGIN_PORT if login else PORT
    return aiomqtt.Client(HOST, port, identifier=who, timeout=checks.patience,
                          max_inflight_messages=IN_FLIGHT, max_concurrent_outgoing_calls=MANY, **options)


async def publish(client, machine, qos, numbers, fill=0):
    await asyncio.gather(*(client.publish(topic(machine), payload(machine, n, fill), qos) for n in numbers))


async def subscribe_to(client, machine):
    codes = await client.subscribe(event_topic(machine), 1)
    codes = [getattr(code, "value", code) for code in codes]
    assert codes == [1], codes


async def expect(client, numbers):
    messages = aiter(client.messages)
    for n in numbers:
        message = await asyncio.wait_for(anext(messages), checks.patience)
        assert number(message.payload) == n, f"{n} is due, not {message.payload}"


def qos(level):
    async def check(who, version):
        async with peer(who, version) as client:
            await publish(client, who, level, range(20))

    return check


async def large(who, version):
    async with peer(who, version) as client:
        await publish(client, who, 1, [1], fill=LARGE)


async def many(who, version):
    async with peer(who, version) as client:
        await publish(client, who, 1, range(MANY))


async def subscribe(who, version):
    async with peer(who, version) as client:
        await subscribe_to(client, who)
        # One after the other, since order is what is looked at.
        for n in range(20):
            await client.publish(topic(who), payload(who, n), 1)
        await expect(client, range(20))


async def session(who, version):
    async with peer(f"{who}-other", version) as other:
        async with peer(who, version, keeps=True) as client:
            await subscribe_to(client, who)
        for n in range(10):
            await other.publish(topic(who), payload(who, n), 1)
        async with peer(who, version, keeps=True) as client:
            await expect(client, range(10))


async def will(who, version):
    async with peer(f"{who}-watcher", version) as watcher:
        await subscribe_to(watcher, who)
        async with peer(f"{who}-polite", version, will=topic(who)):
            pass
        try:
            async with peer(f"{who}-mortal", version, will=topic(who)) as mortal:
                mortal._client.socket().shutdown(socket.SHUT_RDWR)
                await asyncio.sleep(0.1)
        except aiomqtt.MqttError:
            pass
        await expect(watcher, [99])
        assert len(watcher.messages) == 0, "who says goodbye leaves no will"


async def login(who, version):
    async with peer(who, version, login=True) as client:
        await publish(client, USER, 1, range(5))


async def tls(who, version):
    async with peer(who, version, tls=True) as client:
        await publish(client, CERTIFIED, 1, range(5))


ALL = {"qos0": qos(0), "qos1": qos(1), "qos2": qos(2), "large": large, "many": many, "subscribe": subscribe,
       "session": session, "will": will, "login": login, "tls": tls}


async def main():
    for version in (3, 5):
        for name, check in ALL.items():
            name = f"{name}-{version}"
            checks.begin(name)
            try:
                await asyncio.wait_for(check(f"aiomqtt-{name}", version), 3 * checks.patience)
                checks.end(name)
            except Exception as error:
                checks.end(name, error)


asyncio.run(main())
checks.exit()
