//! Rights that change: every state that a client can be in × every way to take its rights away.
//!
//! Whatever was allowed before, a client whose rights are gone is told nothing more and nothing of it becomes an event:
//! connected, asleep, with a will that is pending, in a shared subscription, and after a restart.

mod authorities;
mod programs;
mod subject;

use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, accepted, payload};
use crate::common::{await_port, free_address};
use authorities::Authorities;
use forebay::sources::mqtt::put_user;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use subject::{Heard, Subject};

/// Where the subject's will goes, and what the publisher beside it publishes to.
const STATE: &str = "plant/line1/press/state";
/// Where subscribers see these events.
const EVENTS: &str = "test/plant/machine.state/v1/#";
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough that the change is in force before the will is due.
const WILL_DELAY: u8 = 4;
const OLD: &str = "the old password";
const NEW: &str = "another password";

/// A way to take rights away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    RuleNarrowed,
    UserRemoved,
    PasswordChanged,
    CertificateRevoked,
    IssuerRevoked,
    ListExpired,
    /// Clients without a name are not let in any more.
    AnonymousOff,
}

impl Change {
    fn is_of_certificates(self) -> bool {
        matches!(self, Self::CertificateRevoked | Self::IssuerRevoked | Self::ListExpired)
    }

    /// Whether the client is still let in as it was before.
    fn lets_in(self) -> bool {
        self == Self::RuleNarrowed
    }
}

/// A gateway with two listeners: one that judges, and one on which the test publishes as it likes.
struct Plant {
    gateway: Gateway,
    judged: SocketAddr,
    authorities: Option<Authorities>,
    change: Change,
}

impl Plant {
    fn start(change: Change) -> Self {
        let mut plant = Self::prepare(change);
        plant.run();
        plant
    }

    fn run(&mut self) {
        self.gateway.run();
        await_port(self.judged);
    }

    fn prepare(change: Change) -> Self {
        let judged = free_address();
        let gateway = Gateway::prepare(&format!("rights-{change:?}"), "");
        let authorities = change.is_of_certificates().then(|| Authorities::write(&gateway.folder));
        put_user(&gateway.folder.join("passwd"), "press", OLD.as_bytes()).expect("written");
        put_user(&gateway.folder.join("passwd"), "other", OLD.as_bytes()).expect("written");
        let (proof, who) = match (&authorities, change) {
            (Some(authorities), _) => (authorities.tls(), "who = \"press\"\n"),
            (None, Change::AnonymousOff) => ("passwords = \"passwd\"\nanonymous = true".into(), ""),
            (None, _) => ("passwords = \"passwd\"".into(), "who = \"press\"\n"),
        };
        let listener = format!(
            "\n[[source.mqtt]]\nname = \"judged\"\nlisten = \"{judged}\"\n{proof}\ndefault_rights = false\n[[source.mqtt.acl]]\n{who}publish = [\"plant/+/press/#\"]\nsubscribe = [\"{EVENTS}\"]\n"
        );
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        std::fs::write(gateway.config(), config + &listener).expect("written");
        Self { gateway, judged, authorities, change }
    }

    /// A client of the name `press` with a client id of its own.
    fn subject(&self, client: &'static str) -> Subject {
        let is_named = !self.change.is_of_certificates() && self.change != Change::AnonymousOff;
        let login = is_named.then_some(("press", OLD));
        let hello =
            Hello { client, login, is_clean: false, properties: vec![0x11, 0, 0, 0x0E, 0x10], ..Hello::default() };
        Subject::new(self.judged, hello, self.authorities.as_ref().map(Authorities::client))
    }

    /// Takes the rights away; the caller reloads or starts the gateway.
    fn take_away(&self) {
        let edit = |change: &dyn Fn(String) -> String, file: &std::path::Path| {
            let text = std::fs::read_to_string(file).expect("read");
            std::fs::write(file, change(text)).expect("written");
        };
        let passwords = self.gateway.folder.join("passwd");
        match self.change {
            Change::RuleNarrowed => edit(
                &|text| text.replace("plant/+/press/#", "elsewhere/#").replace(EVENTS, "elsewhere/#"),
                &self.gateway.config(),
            ),
            Change::UserRemoved => edit(
                &|text| {
                    text.lines().filter(|line| !line.starts_with("press:")).map(|line| format!("{line}\n")).collect()
                },
                &passwords,
            ),
            Change::PasswordChanged => put_user(&passwords, "press", NEW.as_bytes()).expect("written"),
            Change::CertificateRevoked => self.authorities().revoke_leaf(),
            Change::IssuerRevoked => self.authorities().revoke_issuer(),
            Change::ListExpired => self.authorities().expire(),
            Change::AnonymousOff => {
                edit(&|text| text.replace("anonymous = true", "anonymous = false"), &self.gateway.config())
            }
        }
    }

    fn authorities(&self) -> &Authorities {
        self.authorities.as_ref().expect("made for changes of certificates")
    }

    fn reload(&self) {
        let output = self.gateway.command(&["reload", "CONFIG"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until the first wills are on the disk; the gateway's log tells that at level `debug`.
    fn await_saved_wills(&self) {
        let start = Instant::now();
        while !self.gateway.log().contains("saved wills that wait") {
            assert!(start.elapsed() < PATIENCE, "the will is saved");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Publishes events with these numbers, on the listener that judges nobody.
    fn publish(&self, numbers: std::ops::Range<usize>) {
        let (mut device, _) = Client::connect(self.gateway.address, &Hello { client: "publisher", ..Hello::default() });
        for number in numbers {
            device.publish(true, 1, STATE, payload(1, number).as_bytes());
        }
    }

    /// What the client gets that comes back: it is refused, or let in and told nothing.
    fn comes_back(&self, state: &str, subject: &mut Subject) {
        let answer = subject.connect();
        let is_in = answer == Some(0);
        // A will that may not be published any more is refused with its client.
        let may_be_in = self.change.lets_in() && !subject.has_will();
        assert_eq!(is_in, may_be_in, "{:?}, {state}: CONNACK {answer:?}", self.change);
        if is_in {
            assert_eq!(subject.hear(), Heard::Nothing, "{:?}, {state}: it comes back", self.change);
        }
        subject.die();
    }

    /// Waits until the pending wills of these clients were dropped, and sees that none became an event.
    fn drops_wills(&self, state: &str, before: u64, clients: &[&str]) {
        let start = Instant::now();
        let is_dropped = |client: &&str| {
            let told = format!("client={client}");
            self.gateway.log().lines().any(|line| line.contains("will dropped") && line.contains(&told))
        };
        loop {
            let now = accepted(&self.gateway.status());
            assert_eq!(now, before, "{:?}, {state}: a will became an event", self.change);
            if clients.iter().all(is_dropped) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{:?}, {state}: no will was dropped", self.change);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// All states of one change.
fn every_state(change: Change) {
    let mut plant = Plant::start(change);
    let shared = format!("$share/group/{EVENTS}");

    let mut connected = plant.subject("connected");
    assert_eq!(connected.connect(), Some(0));
    connected.subscribe(EVENTS);
    let mut member = plant.subject("member");
    assert_eq!(member.connect(), Some(0));
    member.subscribe(&shared);
    let mut asleep = plant.subject("asleep");
    let mut sleeping_member = plant.subject("sleeping-member");
    for (subject, filter) in [(&mut asleep, EVENTS), (&mut sleeping_member, &shared)] {
        assert_eq!(subject.connect(), Some(0));
        subject.subscribe(filter);
        subject.die();
    }
    let mut mortal = plant.subject("mortal").with_will(STATE, WILL_DELAY);
    assert_eq!(mortal.connect(), Some(0));
    // This one is connected when the change comes: it is thrown out, or dies under fewer rights.
    let mut doomed = plant.subject("doomed").with_will(STATE, 0);
    assert_eq!(doomed.connect(), Some(0));
    mortal.die();

    let before = accepted(&plant.gateway.status());
    plant.take_away();
    plant.reload();
    doomed.die();
    plant.drops_wills("will pending", before, &["mortal", "doomed"]);
    plant.publish(0..20);
    for (state, subject) in [("connected", &mut connected), ("shared subscription", &mut member)] {
        let heard = subject.hear();
        let wanted = if change.lets_in() { Heard::Nothing } else { Heard::End };
        assert_eq!(heard, wanted, "{change:?}, {state}");
        subject.die();
    }
    plant.comes_back("asleep", &mut asleep);
    plant.comes_back("shared subscription, asleep", &mut sleeping_member);
    plant.comes_back("will pending", &mut mortal);
    // Nothing of it comes back with a restart either.
    plant.gateway.kill();
    plant.run();
    plant.publish(20..30);
    for subject in [&mut connected, &mut member, &mut asleep] {
        plant.comes_back("after another restart", subject);
    }
}

/// The change comes while the gateway is down.
fn after_restart(change: Change) {
    let mut plant = Plant::prepare(change);
    plant.gateway.environment.push(("FOREBAY_LOG".into(), "debug".into()));
    plant.run();
    let mut asleep = plant.subject("asleep");
    let mut member = plant.subject("sleeping-member");
    let shared = format!("$share/group/{EVENTS}");
    for (subject, filter) in [(&mut asleep, EVENTS), (&mut member, &shared)] {
        assert_eq!(subject.connect(), Some(0));
        subject.subscribe(filter);
        subject.die();
    }
    let mut mortal = plant.subject("mortal").with_will(STATE, WILL_DELAY);
    assert_eq!(mortal.connect(), Some(0));
    mortal.die();
    plant.publish(0..20);
    plant.await_saved_wills();
    let before = accepted(&plant.gateway.status());
    plant.gateway.kill();
    plant.take_away();
    plant.run();
    plant.drops_wills("will pending, after a restart", before, &["mortal"]);
    plant.publish(20..30);
    plant.comes_back("after a restart", &mut asleep);
    plant.comes_back("shared subscription, after a restart", &mut member);
}

macro_rules! rows {
    ($($name:ident, $restarted:ident: $change:ident;)*) => {$(
        #[test]
        fn $name() {
            every_state(Change::$change);
        }

        #[test]
        fn $restarted() {
            after_restart(Change::$change);
        }
    )*};
}

rows! {
    a_narrowed_rule_counts_in_every_state, a_rule_narrowed_while_the_gateway_was_down_counts: RuleNarrowed;
    a_removed_user_is_gone_in_every_state, a_user_removed_while_the_gateway_was_down_is_gone: UserRemoved;
    a_changed_password_counts_in_every_state, a_password_changed_while_the_gateway_was_down_counts: PasswordChanged;
    a_revoked_certificate_is_gone_in_every_state, a_certificate_revoked_while_the_gateway_was_down_is_gone: CertificateRevoked;
    a_revoked_issuer_counts_in_every_state, an_issuer_revoked_while_the_gateway_was_down_counts: IssuerRevoked;
    an_expired_list_counts_in_every_state, a_list_that_expired_while_the_gateway_was_down_counts: ListExpired;
    who_has_no_name_is_gone_in_every_state, who_has_no_name_is_gone_after_a_restart: AnonymousOff;
}

#[test]
fn a_pending_will_outlives_the_gateway() {
    let mut plant = Plant::prepare(Change::UserRemoved);
    plant.gateway.environment.push(("FOREBAY_LOG".into(), "debug".into()));
    plant.run();
    let mut mortal = plant.subject("mortal").with_will(STATE, 2);
    assert_eq!(mortal.connect(), Some(0));
    mortal.die();
    plant.await_saved_wills();
    plant.gateway.kill();
    plant.run();
    plant.gateway.await_status("the will is an event", PATIENCE, |status| accepted(status) == 1);
}

/// Each dropped will once was a line of its own: 10,000 of them for one change.
#[test]
fn wills_of_many_sleepers_that_are_dropped_at_once_are_a_few_lines() {
    const SLEEPERS: usize = 40;
    let plant = Plant::start(Change::UserRemoved);
    for number in 0..SLEEPERS {
        let mut subject = plant.subject(format!("sleeper-{number}").leak()).with_will(STATE, WILL_DELAY);
        assert_eq!(subject.connect(), Some(0));
        subject.die();
    }
    plant.take_away();
    plant.reload();
    let start = Instant::now();
    while plant.gateway.status()["sources"][1]["refused"].as_u64() < Some(SLEEPERS as u64) {
        assert!(start.elapsed() < PATIENCE, "{}", plant.gateway.status()["sources"][1]);
        std::thread::sleep(Duration::from_millis(50));
    }
    let lines = plant.gateway.log().lines().filter(|line| line.contains("will dropped")).count();
    assert!((1..=8).contains(&lines), "{lines} lines for {SLEEPERS} wills");
}
