// mqtt.js against a gateway. The packages are in the folder that FOREIGN_NODE names.

import fs from "node:fs";
import { createRequire } from "node:module";

const mqtt = createRequire(`${process.env.FOREIGN_NODE}/`)("mqtt");
const { FOREIGN_PORT, FOREIGN_LOGIN_PORT, FOREIGN_TLS_PORT, FOREIGN_CA, FOREIGN_CERT, FOREIGN_KEY } = process.env;
const awaited = (process.env.FOREIGN_AWAITED ?? "").split(" ");
const [USER, PASSWORD, CERTIFIED, MANY, LARGE] = ["press", "right", "gw-01", 1000, 200_000];
let patience = 0;

const topic = (machine) => `foreign/${machine}/x`;
const eventTopic = (machine) => `test/plant/foreign.event/v1/${machine}`;
const payload = (machine, n, fill = 0) =>
  JSON.stringify({ id: `${machine}-${n}-${process.hrtime.bigint()}`, n, fill: "x".repeat(fill) });
const range = (count) => [...Array(count).keys()];

function assert(holds, text) {
  if (!holds) throw new Error(text);
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} takes too long`)), patience);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

class Peer {
  static async connect(who, version, { keeps = false, will, login = false, tls = false } = {}) {
    const peer = new Peer();
    const options = {
      clientId: who,
      protocolVersion: version === 5 ? 5 : 4,
      clean: !keeps,
      reconnectPeriod: 0,
      connectTimeout: patience,
    };
    if (version === 5) options.properties = { sessionExpiryInterval: keeps ? 600 : 0 };
    if (will) options.will = { topic: will, payload: payload(who, 99), qos: 1 };
    if (login) Object.assign(options, { username: USER, password: PASSWORD });
    if (tls) Object.assign(options, {
      ca: fs.readFileSync(FOREIGN_CA), cert: fs.readFileSync(FOREIGN_CERT), key: fs.readFileSync(FOREIGN_KEY),
    });
    const port = tls ? FOREIGN_TLS_PORT : login ? FOREIGN_LOGIN_PORT : FOREIGN_PORT;
    peer.heard = [];
    peer.client = mqtt.connect(`${tls ? "mqtts" : "mqtt"}://localhost:${port}`, options);
    // Before CONNACK: what a session is owed may come right behind it.
    peer.client.on("message", (_, bytes) => peer.heard.push(JSON.parse(bytes).data.n));
    const connack = await within(new Promise((resolve, reject) => {
      peer.client.once("connect", resolve);
      peer.client.once("error", reject);
      peer.client.once("close", () => reject(new Error("the connection ended")));
    }), "CONNACK");
    peer.client.on("error", () => {});
    peer.hasSession = connack.sessionPresent;
    return peer;
  }

  async publish(machine, qos, numbers, fill = 0) {
    const all = numbers.map((n) => this.client.publishAsync(topic(machine), payload(machine, n, fill), { qos }));
    await within(Promise.all(all), `an acknowledgement at QoS ${qos}`);
  }

  async subscribe(machine) {
    const granted = await within(this.client.subscribeAsync(eventTopic(machine), { qos: 1 }), "SUBACK");
    assert(granted[0]?.qos === 1, `granted ${JSON.stringify(granted)}`);
  }

  async expect(numbers) {
    const start = Date.now();
    while (this.heard.length < numbers.length) {
      assert(Date.now() - start < patience, `heard [${this.heard}], and no more`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert(`${this.heard}` === `${numbers}`, `heard [${this.heard}]`);
  }

  leave() {
    return within(this.client.endAsync(), "goodbye");
  }

  die() {
    this.client.stream.destroy();
  }
}

const qos = (level) => async (who, version) => {
  const peer = await Peer.connect(who, version);
  await peer.publish(who, level, range(20));
  await peer.leave();
};

const all = {
  qos0: qos(0),
  qos1: qos(1),
  qos2: qos(2),
  async large(who, version) {
    const peer = await Peer.connect(who, version);
    await peer.publish(who, 1, [1], LARGE);
    await peer.leave();
  },
  // All at once: mqtt.js does not look at the Receive Maximum of CONNACK.
  async many(who, version) {
    const peer = await Peer.connect(who, version);
    await peer.publish(who, 1, range(MANY));
    await peer.leave();
  },
  async subscribe(who, version) {
    const peer = await Peer.connect(who, version);
    await peer.subscribe(who);
    await peer.publish(who, 1, range(50));
    await peer.expect(range(50));
    await peer.leave();
  },
  async session(who, version) {
    const other = await Peer.connect(`${who}-other`, version);
    let peer = await Peer.connect(who, version, { keeps: true });
    await peer.subscribe(who);
    await peer.leave();
    await other.publish(who, 1, range(10));
    peer = await Peer.connect(who, version, { keeps: true });
    assert(peer.hasSession, "the session is gone");
    await peer.expect(range(10));
    await peer.leave();
    await other.leave();
  },
  async will(who, version) {
    const watcher = await Peer.connect(`${who}-watcher`, version);
    await watcher.subscribe(who);
    await (await Peer.connect(`${who}-polite`, version, { will: topic(who) })).leave();
    (await Peer.connect(`${who}-mortal`, version, { will: topic(who) })).die();
    await watcher.expect([99]);
    await watcher.leave();
  },
  async login(who, version) {
    const peer = await Peer.connect(who, version, { login: true });
    await peer.publish(USER, 1, range(5));
    await peer.leave();
  },
  async tls(who, version) {
    const peer = await Peer.connect(who, version, { tls: true });
    await peer.publish(CERTIFIED, 1, range(5));
    await peer.leave();
  },
};

let hasFailed = false;
for (const version of [3, 5]) {
  for (const [kind, check] of Object.entries(all)) {
    const name = `${kind}-${version}`;
    patience = awaited.includes(name) ? 1_000 : 20_000;
    try {
      await check(`mqttjs-${name}`, version);
      console.log(`ok ${name}`);
    } catch (error) {
      hasFailed = true;
      console.log(`FAIL ${name} ${`${error.message ?? error}`.replace(/\s+/g, " ")}`);
    }
  }
}
process.exit(hasFailed ? 1 : 0);
