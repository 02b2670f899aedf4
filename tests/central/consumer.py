#!/usr/bin/env python3
"""A central system in one file: takes a gateway's events, each once, and says what is missing.

It shows what a consumer has to do, and the tests use it as theirs. In order of importance:

1. subscribe with QoS 1 in a persistent session, and acknowledge only what is on the disk;
2. drop twins by `source` and `id`: the same event may come again, also much later;
3. watch `sequence`, which counts each stream of a gateway without gaps;
4. explain gaps by what the gateway says: `gateway.ledger` (how many events there were, and up to
   when all of them were delivered) and `gateway.loss` (what it had to give up);
5. put times right that a gateway without the time has given: `gateway.clock` says by how much.

Needs paho-mqtt 2; batches that are compressed need the package zstandard (or Python 3.14).
"""

import argparse
import base64
import hashlib
import json
import queue
import signal
import sqlite3
import ssl
import sys
import time
import uuid
from datetime import datetime, timedelta, timezone

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LEDGER = ".gateway.ledger.v1"
LOSS = ".gateway.loss.v1"
CLOCK = ".gateway.clock.v1"
# Messages taken before the disk has them; the broker holds back what is beyond.
IN_HAND_MAX = 1000
# Messages in one transaction, and how long it waits for more of them.
COMMIT_MESSAGES, COMMIT_WAIT = 500, 0.02
# The broker keeps the session for so long while nobody is there.
SESSION_SECONDS = 7 * 86400
# Ranges of numbers that a report names one by one.
RANGES_SHOWN = 50

SCHEMA = """
CREATE TABLE IF NOT EXISTS event (source TEXT, id TEXT, type TEXT, sequence INTEGER, time TEXT, body TEXT,
                                  recorded TEXT, clock TEXT, PRIMARY KEY (source, id)) WITHOUT ROWID;
-- A number belongs to a stream of a gateway: one event, also where the event came under another number before.
CREATE TABLE IF NOT EXISTS number (gateway TEXT, type TEXT, sequence INTEGER, id TEXT,
                                   PRIMARY KEY (gateway, type, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (gateway TEXT, type TEXT, first INTEGER, last INTEGER, count INTEGER, digest TEXT,
                                   sequence INTEGER, time TEXT, PRIMARY KEY (gateway, type, first, last)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS loss (gateway TEXT, type TEXT, first INTEGER, last INTEGER, count INTEGER, cause TEXT,
                                 PRIMARY KEY (gateway, type, first, last, cause)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock (gateway TEXT, type TEXT, first INTEGER, last INTEGER, offset REAL, begun TEXT,
                                  ended TEXT, set_to TEXT, PRIMARY KEY (gateway, type, first, last)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER);
CREATE TABLE IF NOT EXISTS problem (text TEXT PRIMARY KEY);
"""


class Unreadable(Exception):
    """A message that is no CloudEvent."""


# --- from a message to its events ---


def unpack(payload):
    """Takes zstd off a payload."""
    try:
        from compression import zstd  # Python 3.14
        return zstd.decompress(payload)
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        sys.exit("a batch is compressed: install the package zstandard; it stays with the broker until then")
    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def expanded(properties, topic):
    """The attributes of a compact message, with what its topic says."""
    levels = topic.split("/", 4)
    source, time = properties.pop("s"), int(properties.pop("t"))

    def at(micros):
        return (EPOCH + timedelta(microseconds=micros)).isoformat(timespec="microseconds").replace("+00:00", "Z")

    packed = properties.pop("u", None)
    event = {
        "specversion": "1.0",
        "id": properties.pop("i") if packed is None else str(uuid.UUID(bytes=base64.urlsafe_b64decode(packed + "=="))),
        "source": source if source.startswith("/") else f"/{levels[1]}/{source}",
        "type": properties.pop("y") if "y" in properties else f"{properties.pop('p')}.{levels[2]}.{levels[3]}",
        "time": at(time),
        "recordedtime": at(time + int(properties.pop("r"))),
        "sequence": properties.pop("n").zfill(20),
        "subject": properties.pop("k") if "k" in properties else levels[4],
    }
    # An event with an empty key has no subject.
    return {**{name: value for name, value in event.items() if value != ""}, **properties}


def events_of(payload, media_type="", properties=(), topic=""):
    """The CloudEvents of one message: structured, binary, compact or a batch. MQTT 3.1.1 has no media type: there
    the first byte tells."""
    properties = dict(properties)
    if "n" in properties and ("i" in properties or "u" in properties):
        properties, media_type = expanded(properties, topic), media_type or "application/json"
    if media_type.endswith("+zstd") or payload[:4] == ZSTD_MAGIC:
        payload, media_type = unpack(payload), media_type.removesuffix("+zstd")
    if "specversion" in properties:
        event = {name: text for name, text in properties.items() if name not in ("backfill", "replay")}
        event["datacontenttype"] = media_type
        if media_type == "application/json":
            event["data"] = json.loads(payload)
        return [event]
    if media_type not in ("", STRUCTURED, BATCH):
        raise Unreadable(f"media type {media_type!r}")
    found = json.loads(payload)
    events = found if isinstance(found, list) else [found]
    for event in events:
        if not isinstance(event, dict) or not all(isinstance(event.get(a), str) for a in ("id", "source", "type")):
            raise Unreadable("without id, source or type")
    return events


def shifted(time, seconds):
    """A time so many seconds later, as it is written."""
    at = datetime.fromisoformat(time.replace("Z", "+00:00")) + timedelta(microseconds=round(seconds * 1e6))
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def gateway_of(source):
    """`/{site}/{gateway}` of `/{site}/{gateway}/{source}/{device}`."""
    return "/".join(source.split("/")[:3])


# --- what is remembered ---


class Books:
    """Everything that was received, in one SQLite file."""

    def __init__(self, file, keeps_bodies=False):
        self.db = sqlite3.connect(file)
        self.keeps_bodies = keeps_bodies
        self.db.executescript(SCHEMA)

    def count(self, name, by=1):
        self.db.execute("INSERT INTO counter VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + ?", (name, by, by))

    def problem(self, text):
        self.db.execute("INSERT OR IGNORE INTO problem VALUES (?)", (text,))

    def take(self, event, mark=""):
        """Takes one event; `True` if it is new. `mark` is `backfill`, `replay` or nothing: neither changes what
        the event is, so that both are dropped or taken as any other."""
        source, id, type = event["source"], event["id"], event["type"]
        if "sequence" not in event:
            # A status is a state, not an event: nothing counts it.
            self.count("without sequence")
            return False
        gateway, sequence = gateway_of(source), int(event["sequence"])
        self.number(gateway, type, sequence, id)
        body = json.dumps(event) if self.keeps_bodies else None
        row = (source, id, type, sequence, event.get("time"), body, event.get("recordedtime"), event.get("clockstatus"))
        is_new = self.db.execute("INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount == 1
        if mark:
            self.count(mark)
        if not is_new:
            self.count("doubled")
            return False
        self.count("events")
        if type.endswith(LEDGER):
            self.take_ledger(gateway, type.removesuffix(LEDGER), event["data"])
        elif type.endswith(LOSS):
            self.take_loss(gateway, type.removesuffix(LOSS), event["data"])
        elif type.endswith(CLOCK):
            self.take_clock(gateway, type.removesuffix(CLOCK), event["data"])
        return True

    def number(self, gateway, type, sequence, id):
        known = self.db.execute(
            "SELECT id FROM number WHERE gateway = ? AND type = ? AND sequence = ?", (gateway, type, sequence)).fetchone()
        if known is None:
            self.db.execute("INSERT INTO number VALUES (?, ?, ?, ?)", (gateway, type, sequence, id))
        elif known[0] != id:
            self.problem(f"{gateway} {type}: sequence {sequence} was given to {known[0]} and to {id}")

    def take_ledger(self, gateway, namespace, data):
        mark = data.get("watermark") or {}
        row = (gateway, f"{namespace}.{data['stream']}", data["first"], data["last"], data["count"], data["digest"],
               mark.get("sequence"), mark.get("time"))
        self.db.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def take_loss(self, gateway, namespace, data):
        for lost in data["streams"]:
            row = (gateway, f"{namespace}.{lost['stream']}", lost["first"], lost["last"], lost["count"], data["cause"])
            self.db.execute("INSERT OR REPLACE INTO loss VALUES (?, ?, ?, ?, ?, ?)", row)

    def take_clock(self, gateway, namespace, data):
        for part in data["streams"]:
            row = (gateway, f"{namespace}.{part['stream']}", part["first"], part["last"], data["offset_seconds"],
                   data["from"], data["to"], data["set_to"])
            self.db.execute("INSERT OR REPLACE INTO clock VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    # --- the times ---

    def times(self):
        """Every event that has a number, with its times put right where that can be done."""
        rows = self.db.execute("SELECT source, type, sequence, id, time, recorded, clock FROM event ORDER BY type, sequence")
        for source, type, sequence, id, time, recorded, clock in rows.fetchall():
            time, recorded, state = self.right_times(gateway_of(source), type, sequence, time, recorded, clock)
            yield {"source": source, "type": type, "sequence": sequence, "id": id, "time": time,
                   "recordedtime": recorded, "clock": state}

    def right_times(self, gateway, type, sequence, time, recorded, clock):
        """Time and recorded time as they should be; and whether that is what they were (`right`), are now
        (`corrected`), or cannot be known (`unknown`)."""
        if clock != "untrusted":
            return time, recorded, "right"
        found = self.db.execute(
            "SELECT offset, begun, ended FROM clock WHERE gateway = ? AND type = ? AND ? BETWEEN first AND last",
            (gateway, type, sequence)).fetchone()
        if found is None:
            # Taken in the moment in which the clock was set: still marked, with the time that it was set to.
            is_after = self.db.execute("SELECT 1 FROM clock WHERE gateway = ? AND offset IS NOT NULL AND set_to <= ?"
                                       " AND julianday(set_to, '+1 minute') > julianday(?)",
                                       (gateway, recorded, recorded)).fetchone()
            return time, recorded, "right" if is_after else "unknown"
        offset, begun, ended = found
        if offset is None:
            return time, recorded, "unknown"
        # A device has a clock of its own: only a time that the gateway's showed then can be the gateway's.
        if time and begun <= time <= ended:
            time = shifted(time, offset)
        return time, shifted(recorded, offset), "corrected"

    # --- the reconciliation ---

    def report(self):
        counters = dict(self.db.execute("SELECT name, value FROM counter"))
        problems = [text for (text,) in self.db.execute("SELECT text FROM problem ORDER BY text")]
        streams = self.db.execute(
            "SELECT gateway, type FROM number UNION SELECT gateway, type FROM ledger"
            " UNION SELECT gateway, type FROM loss ORDER BY 1, 2").fetchall()
        streams = [self.stream(gateway, type) for gateway, type in streams]
        for stream in streams:
            problems += stream.pop("problems")
        is_good = not problems and all(stream["missing"] == 0 for stream in streams)
        return {"is_good": is_good, "events": counters.get("events", 0), "doubled": counters.get("doubled", 0),
                "backfill": counters.get("backfill", 0), "replay": counters.get("replay", 0),
                "unreadable": counters.get("unreadable", 0), "streams": streams, "problems": problems}

    def stream(self, gateway, type):
        """What is known of one stream of one gateway."""
        rows = self.db.execute(
            "SELECT sequence FROM number WHERE gateway = ? AND type = ? ORDER BY sequence", (gateway, type))
        runs = runs_of(sequence for (sequence,) in rows)
        ledger = self.db.execute(
            "SELECT first, last, count, digest, sequence, time FROM ledger WHERE gateway = ? AND type = ?"
            " ORDER BY first, last", (gateway, type)).fetchall()
        losses = self.db.execute(
            "SELECT first, last, count, cause FROM loss WHERE gateway = ? AND type = ? ORDER BY first",
            (gateway, type)).fetchall()
        first = min([run[0] for run in runs[:1]] + [entry[0] for entry in ledger], default=1)
        marks = [entry[4] for entry in ledger if entry[4] is not None]
        # Nothing is missing that may still be on its way: behind what came, only the ledger says what was sent.
        last = max([run[1] for run in runs[-1:]] + marks + [loss[1] for loss in losses], default=0)
        holes = holes_between(runs, first, last)
        problems, never_given = [], 0
        for from_, to, count, digest, *_ in ledger:
            held, own = self.digest(gateway, type, from_, to)
            if held == count and own != digest:
                problems.append(f"{gateway} {type}: the digest of {from_} to {to} differs, though all {count} came")
            if held > count:
                problems.append(f"{gateway} {type}: {held} events came of {from_} to {to}, the ledger has {count}")
            if held == count:
                # All events of the period are here: numbers between them belong to none.
                before = total(holes)
                holes = without(holes, from_, to)
                never_given += before - total(holes)
        lost = {}
        for from_, to, count, cause in losses:
            before = total(holes)
            holes = without(holes, from_, to, at_most=count)
            lost[cause] = lost.get(cause, 0) + before - total(holes)
        clock = {"corrected": 0, "unknown": 0}
        marked = self.db.execute(
            "SELECT source, sequence, time, recorded FROM event WHERE type = ? AND clock = 'untrusted'", (type,))
        for source, sequence, time, recorded in marked.fetchall():
            state = self.right_times(gateway, type, sequence, time, recorded, "untrusted")[2]
            if gateway_of(source) == gateway and state in clock:
                clock[state] += 1
        complete = None
        for *_, sequence, at in ledger:
            is_past = complete is not None and sequence is not None and sequence <= complete["sequence"]
            if sequence is not None and not is_past and (not holes or sequence < holes[0][0]):
                complete = {"time": at, "sequence": sequence}
        return {"gateway": gateway, "type": type, "events": total(runs), "first": first, "last": last,
                "complete": complete, "missing": total(holes), "missing_ranges": holes[:RANGES_SHOWN], "lost": lost,
                "never_given": never_given, "clock": clock, "problems": problems}

    def digest(self, gateway, type, first, last):
        """How many events of a range are here, and SHA-256 over their ids, each with a line feed, by number."""
        own, count = hashlib.sha256(), 0
        rows = self.db.execute("SELECT id FROM number WHERE gateway = ? AND type = ? AND sequence BETWEEN ? AND ?"
                               " ORDER BY sequence", (gateway, type, first, last))
        for (id,) in rows:
            own.update(id.encode() + b"\n")
            count += 1
        return count, own.hexdigest()


# --- ranges of numbers, both ends included ---


def runs_of(numbers):
    runs = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def holes_between(runs, first, last):
    holes, next = [], first
    for from_, to in runs:
        if from_ > next:
            holes.append([next, from_ - 1])
        next = max(next, to + 1)
    if next <= last:
        holes.append([next, last])
    return holes


def total(ranges):
    return sum(to - from_ + 1 for from_, to in ranges)


def without(ranges, first, last, at_most=None):
    """The ranges without what lies in first to last, of which at most so many numbers go."""
    left, rest = at_most if at_most is not None else float("inf"), []
    for from_, to in ranges:
        cut_from, cut_to = max(from_, first), min(to, last)
        cut_to = min(cut_to, cut_from + left - 1)
        if cut_from > cut_to:
            rest.append([from_, to])
            continue
        left -= cut_to - cut_from + 1
        rest += [part for part in ([from_, cut_from - 1], [cut_to + 1, to]) if part[0] <= part[1]]
    return rest


# --- the session ---


class Consumer:
    """Takes what a broker has, until told to stop."""

    def __init__(self, options, books):
        self.options, self.books = options, books
        self.waiting = queue.Queue(IN_HAND_MAX)
        self.session = 0
        self.is_over = False
        is_5 = options.protocol == "5"
        more = {} if is_5 else {"clean_session": False}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, options.client, manual_ack=True,
                                  protocol=mqtt.MQTTv5 if is_5 else mqtt.MQTTv311, **more)
        self.client.on_connect = self.connected
        # The broker may be gone for a while; what is in hand then comes again.
        self.client.reconnect_delay_set(0.2, 5)
        self.client.on_message = lambda client, data, message: self.waiting.put((self.session, message))
        if options.user:
            with open(options.password_file) as file:
                self.client.username_pw_set(options.user, file.readline().rstrip("\n"))
        if options.ca:
            self.client.tls_set(options.ca, options.cert, options.key, tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self.connect_options = {}
        if is_5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = SESSION_SECONDS
            properties.ReceiveMaximum = IN_HAND_MAX
            self.connect_options = {"clean_start": False, "properties": properties}

    def connected(self, client, data, flags, code, properties):
        if code.is_failure:
            print(f"the broker refuses: {code}", file=sys.stderr)
            return
        self.session += 1
        filters = [prefix + topic for topic in self.options.topics
                   for prefix in ("", self.options.backfill_prefix, self.options.replay_prefix)]
        client.subscribe([(topic, 1) for topic in dict.fromkeys(filters)])
        print("subscribed", file=sys.stderr, flush=True)

    def run(self):
        options = self.options
        self.client.connect_async(options.host, options.port, keepalive=30, **self.connect_options)
        self.client.loop_start()
        ends = time.monotonic() + options.run_for if options.run_for else float("inf")
        heard = time.monotonic()
        while not self.is_over and time.monotonic() < ends:
            messages = self.some()
            if messages:
                self.take(messages)
                heard = time.monotonic()
            elif options.idle and self.session and time.monotonic() - heard > options.idle:
                break
        self.client.disconnect()
        self.client.loop_stop()

    def some(self):
        """Waits for a message, and takes what comes right behind it."""
        messages, wait = [], 0.1
        try:
            while len(messages) < COMMIT_MESSAGES:
                messages.append(self.waiting.get(timeout=wait))
                wait = COMMIT_WAIT
        except queue.Empty:
            pass
        return messages

    def take(self, messages):
        with self.books.db:
            for _, message in messages:
                self.take_message(message)
        # Only now, since the disk has it: before, the broker would forget what a crash here loses.
        for session, message in messages:
            # A packet id means something in its own session's connection alone.
            if message.qos and session == self.session:
                self.client.ack(message.mid, message.qos)

    def take_message(self, message):
        properties = getattr(message, "properties", None)
        user = list(getattr(properties, "UserProperty", []) or [])
        media_type = getattr(properties, "ContentType", "") or ""
        try:
            events = events_of(message.payload, media_type, user, message.topic)
        except (Unreadable, ValueError) as error:
            self.unreadable(message.topic, error)
            return
        for event in events:
            # One that is wrong takes none of its batch with it.
            try:
                self.books.take(event, self.mark(message.topic, dict(user)))
            except (ValueError, KeyError, TypeError) as error:
                self.unreadable(message.topic, error)

    def unreadable(self, topic, error):
        self.books.count("unreadable")
        self.books.problem(f"{topic}: a message cannot be read: {error!r:.200}")

    def mark(self, topic, user):
        """Whether a message is from a backlog that is made up for, or sent again on request."""
        for name, prefix in (("backfill", self.options.backfill_prefix), ("replay", self.options.replay_prefix)):
            if user.get(name) == "true" or topic.startswith(prefix):
                return name
        return ""


def text_of(report):
    lines = [f"{report['events']:,} events, {report['doubled']:,} twins dropped, {report['backfill']:,} backfilled,"
             f" {report['replay']:,} replayed"]
    for stream in report["streams"]:
        complete = stream["complete"]
        upto = f"complete up to {complete['time']} (sequence {complete['sequence']})" if complete else "no watermark yet"
        lines.append(f"{stream['gateway']} {stream['type']}: {stream['events']:,} events, {upto}")
        for cause, count in stream["lost"].items():
            lines.append(f"    {count:,} lost at the gateway, as it announced: {cause}")
        if stream["never_given"]:
            lines.append(f"    {stream['never_given']:,} numbers belong to no event, as its ledger says")
        for state, count in stream["clock"].items():
            if count:
                what = "put right by what it said later" if state == "corrected" else "and nobody knows by how much"
                lines.append(f"    {count:,} came while the gateway's clock was wrong, {what}")
        if stream["missing"]:
            ranges = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in stream["missing_ranges"])
            lines.append(f"    {stream['missing']:,} MISSING: {ranges}")
    lines += [f"! {problem}" for problem in report["problems"]]
    lines.append("reconciled" if report["is_good"] else "NOT reconciled")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("topics", nargs="*", help="topic filters, such as production/plant-01/#")
    parser.add_argument("--state", default="consumer.db", help="SQLite file that remembers what came")
    parser.add_argument("--report", action="store_true", help="report on the state, and connect to nothing")
    parser.add_argument("--times", action="store_true", help="the events of the state with their times put right, one a line")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the events themselves in the state too")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--client", default="forebay-consumer", help="client id: the name of the session")
    parser.add_argument("--protocol", choices=["5", "3.1.1"], default="5")
    parser.add_argument("--user")
    parser.add_argument("--password-file")
    parser.add_argument("--ca"), parser.add_argument("--cert"), parser.add_argument("--key")
    parser.add_argument("--backfill-prefix", default="backfill/", help="topic prefix of a backlog, for MQTT 3.1.1")
    parser.add_argument("--replay-prefix", default="replay/", help="topic prefix of a replay, for MQTT 3.1.1")
    parser.add_argument("--idle", type=float, help="end after so many seconds without a message")
    parser.add_argument("--run-for", type=float, help="end after so many seconds")
    options = parser.parse_args()
    if not options.report and not options.times and not options.topics:
        parser.error("name a topic filter, such as production/plant-01/#, or --report or --times")
    if bool(options.user) != bool(options.password_file):
        parser.error("--user and --password-file go together")
    return options


def main():
    options = arguments()
    books = Books(options.state, options.keep)
    if options.times:
        for event in books.times():
            print(json.dumps(event))
        return
    if not options.report:
        consumer = Consumer(options, books)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(consumer, "is_over", True))
        consumer.run()
    report = books.report()
    print(json.dumps(report, indent=2) if options.json else text_of(report))
    sys.exit(0 if report["is_good"] else 1)


if __name__ == "__main__":
    main()
