//! Every test that needs more than one module: one program, so that it is linked once.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may fail, and lives in real time")]

/// Helpers: the real program as a process, clients, brokers, certificates, disks that fail.
mod common;
/// The rules for the sources of this repository: rows, cycles, lengths, headers, words, commits.
mod tidy;

/// Acknowledged events survive repeats, full lanes, reloads and commands of an operator.
mod acknowledgement;
/// A disk that is full, read-only or failing stops acknowledgements, and recovery needs no restart.
mod bad_disk;
/// Acknowledged events survive files of the journal that are removed, replaced or moved by hand.
mod by_hand;
/// A gateway without the time of day takes and delivers events, and corrects their times later.
mod clock;
/// Compaction of the state returns its room and loses nothing at any moment of a power cut.
mod compaction;
/// Export, verify, backup and salvage of a whole journal.
mod export;
/// Files of every stored format stay readable.
mod golden;
/// A lane returns what it was given, in order, over blocks, segments and restarts.
mod journal;
/// The gateway starts with the largest state that clients can leave, within the memory of the unit.
mod largest_state;
/// Narrow lines, with delay and loss, carry all lanes.
mod narrow_lines;
/// Acknowledged events survive SIGKILL of the gateway, the death of central, and bad networks.
mod nothing_lost;
/// Numbers keep all their digits wherever they go.
mod numbers;
/// Events survive a long outage with kills during it.
mod outage;
/// Acknowledged events survive a power cut after every single disk operation, on a disk in memory.
mod power_cut;
/// Acknowledged events survive power cuts of a real ext4 file system.
mod power_cut_real;
/// Slow lines are not dead, and dead ones are left in time.
mod slow_line;

/// MQTT 3.1.1 and 5: each normative statement of the standards has its check.
mod conformance;
/// Clients of other projects (Paho, mqtt.js, aiomqtt, Mosquitto) work with the listener.
mod foreign;
/// Random bytes at every parser: it neither panics nor takes long.
mod fuzz;
/// Shared subscriptions deliver each event to one member.
mod groups;
/// Subscribers on the gateway receive last values first, and each event once.
mod last_values;
/// The MQTT listener over TCP, TLS and its limits.
mod listener;
/// CloudEvents, message expiry, response topic and user properties of a publish reach central as the contract says.
mod publish_properties;
/// A publish that is refused takes no other event of its device with it.
mod refused_clients;
mod refused_publishes;
/// What clients leave behind is bounded: sessions, their bytes on the disk and in memory.
mod session_limits;
/// QoS 2, redelivery, and subscribers that sleep or are slow.
mod sessions;
/// Sparkplug B: births, deaths and aliases become events.
mod sparkplug;
/// A will becomes an event when the standard says so, however its session ends.
mod wills;

/// A broker of the plant as a source.
mod broker_source;
/// Files that programs drop into a folder, as a source.
mod folder;
/// The HTTP server as a source.
mod http;
/// Modbus devices as a source, over TCP, TLS and serial lines.
mod modbus;
/// Odoo as a source: recorded answers always, the real program on request.
mod odoo;

/// Commands of central reach devices once, in order, and are answered by receipts, through kills.
mod commands;
/// Payloads are delivered as their contract says, or become dead letters that give the reason.
mod contracts;
/// Dead letters are requeued, edited and discarded, singly and by filter.
mod dead;
/// A full lane costs other lanes nothing; shedding follows the settings.
mod lanes;
/// Accounts of all events balance through kills, and central can check them.
mod ledger;
/// Replays deliver settled events again, marked, behind live ones.
mod replay;

/// The reference consumer of `central/` removes duplicates and finds gaps.
mod central;
/// A link to a broker that answers late, wrongly or not at all.
mod link;
/// Lines that are paid by the byte: budgets, and bytes of an event.
mod metered;
/// Mistakes in a configuration are answered in words of people.
mod mistakes;
/// Central answers with any reason code, late, in pieces, or ends the connection.
mod odd_answers;
/// Ways out of a plant: WebSocket, proxies, IPv6, client ids that central gives.
mod ways_out;

/// No client costs the others more than its share: rows of attackers and the latency of others.
mod fairness;
/// Attacks by clients do not get the process killed for memory.
mod hostile;
/// Names and rights of clients, by every way to prove a name.
mod identity;
/// Commands that read the journal of a running gateway answer or refuse.
mod in_use;
/// Rights that are withdrawn end at once, in whatever state a client is.
mod rights_change;
/// Refused clients reach central as security events.
mod screens;
mod security;

/// Answers of the command socket need little memory, whatever their size.
mod answers;
/// The support bundle holds no secret.
mod bundle;
/// The command socket changes nothing for a caller whom the kernel does not name.
mod callers;
/// Certificates of a plant: authority, gateway, devices, requests, renewal.
mod cert;
/// What a commissioning person asks: names, ports, TLS, logins, rights, and what the service may read.
mod check_connect;
/// The demo runs as the README says.
mod demo;
/// The documents: links lead somewhere, tables are complete, examples and tutorials work when pasted.
mod documents;
/// The first hour of a newcomer: init, the place of the configuration, contracts try, silent mistakes.
mod first_hour;
/// The log has one line per change of state, and no secret.
mod logs;
/// Metrics, health, alerts and the dashboard agree with each other.
mod monitoring;
/// Mistakes of an operator: files named twice, terminals, pipes, passwords.
mod operator;
/// Faulty settings are refused with a message that names file, line and remedy.
mod refusals;
/// Settings, certificates and contracts change while the gateway runs.
mod reload;
/// Secrets that others can read, and what an environment `production` does not allow.
mod seal;
/// The gateway tells systemd its state.
mod service;
