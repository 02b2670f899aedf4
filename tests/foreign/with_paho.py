"""Eclipse Paho for Python against a gateway."""

import queue
import socket
import ssl

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from checks import *

checks = Checks()


class Peer:
    """A client that is connected, and what it has heard."""

    def __init__(self, who, version, keeps=False, will=None, login=False, tls=False):
        self.heard = queue.Queue()
        is_5 = version == 5
        options = {} if is_5 else {"clean_session": not keeps}
        protocol = mqtt.MQTTv5 if is_5 else mqtt.MQTTv311
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, who, protocol=protocol, **options)
        self.client.max_inflight_messages_set(IN_FLIGHT)
        connected, self.subscribed = queue.Queue(), queue.Queue()
        self.client.on_connect = lambda client, data, flags, code, properties: connected.put((flags, code))
        self.client.on_subscribe = lambda client, data, id, codes, properties: self.subscribed.put(codes)
        self.client.on_message = lambda client, data, message: self.heard.put(message)
        if will:
            self.client.will_set(will, payload(who, 99), qos=1)
        if login:
            self.client.username_pw_set(USER, PASSWORD)
        if tls:
            self.client.tls_set(CA, CERT, KEY, tls_version=ssl.PROTOCOL_TLS_CLIENT)
        options = {}
        if is_5:
            options = {"clean_start": not keeps, "properties": Properties(PacketTypes.CONNECT)}
            options["properties"].SessionExpiryInterval = 600 if keeps else 0
        self.client.connect(HOST, TLS_PORT if tls else LOGIN_PORT if login else PORT, **options)
        self.client.loop_start()
        flags, code = connected.get(timeout=checks.patience)
        assert not code.is_failure, code
        self.has_session = flags.session_present

    def publish(self, machine, qos, numbers, fill=0):
        sent = [self.client.publish(topic(machine), payload(machine, n, fill), qos) for n in numbers]
        for info in sent:
            info.wait_for_publish(checks.patience)
            assert info.is_published(), f"QoS {qos} is not acknowledged"

    def subscribe(self, machine):
        self.client.subscribe(event_topic(machine), 1)
        codes = self.subscribed.get(timeout=checks.patience)
        assert [code.value for code in codes] == [1], codes

    def expect(self, numbers):
        for n in numbers:
            message = self.heard.get(timeout=checks.patience)
            assert number(message.payload) == n, f"{n} is due, not {message.payload}"

    def leave(self):
        self.client.disconnect()
        self.client.loop_stop()

    def die(self):
        self.client.loop_stop()
        self.client.socket().shutdown(socket.SHUT_RDWR)


def qos(level):
    def check(who, version):
        peer = Peer(who, version)
        peer.publish(who, level, range(20))
        peer.leave()

    return check


def large(who, version):
    peer = Peer(who, version)
    peer.publish(who, 1, [1], fill=LARGE)
    peer.leave()


def many(who, version):
    peer = Peer(who, version)
    peer.publish(who, 1, range(MANY))
    peer.leave()


def subscribe(who, version):
    peer = Peer(who, version)
    peer.subscribe(who)
    peer.publish(who, 1, range(50))
    peer.expect(range(50))
    peer.leave()


def session(who, version):
    other = Peer(f"{who}-other", version)
    peer = Peer(who, version, keeps=True)
    peer.subscribe(who)
    peer.leave()
    other.publish(who, 1, range(10))
    peer = Peer(who, version, keeps=True)
    assert peer.has_session, "the session is gone"
    peer.expect(range(10))
    peer.leave()
    other.leave()


def will(who, version):
    watcher = Peer(f"{who}-watcher", version)
    watcher.subscribe(who)
    Peer(f"{who}-polite", version, will=topic(who)).leave()
    Peer(f"{who}-mortal", version, will=topic(who)).die()
    watcher.expect([99])
    assert watcher.heard.empty(), "who says goodbye leaves no will"
    watcher.leave()


def login(who, version):
    peer = Peer(who, version, login=True)
    peer.publish(USER, 1, range(5))
    peer.leave()


def tls(who, version):
    peer = Peer(who, version, tls=True)
    peer.publish(CERTIFIED, 1, range(5))
    peer.leave()


ALL = {"qos0": qos(0), "qos1": qos(1), "qos2": qos(2), "large": large, "many": many, "subscribe": subscribe,
       "session": session, "will": will, "login": login, "tls": tls}

for version in (3, 5):
    for name, check in ALL.items():
        name = f"{name}-{version}"
        checks.begin(name)
        try:
            check(f"paho-{name}", version)
            checks.end(name)
        except Exception as error:
            checks.end(name, error)
checks.exit()
