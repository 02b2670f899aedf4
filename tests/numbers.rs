//! Numbers are carried as they were written, wherever the gateway reads, masks, keeps or edits them.
//!
//! A user's SIM cards have numbers of 20 digits. As a double, two of them are one.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello, publish};
use crate::common::gateway::Gateway;
use crate::common::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

const CONTRACT: &str = r#"
name = "card"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "cards/x" }
key = "{/k}"
id = "/i"
keep = ["/k", "/i", "/deep/n", "/list", "/secret", "/ok"]
mask = ["/secret"]
schema = "card.json"
"#;
const SCHEMA: &str = r#"{"type":"object","required":["ok"]}"#;

/// Any number that JSON allows and that a double can approximate.
fn number(random: &mut Random) -> String {
    let digits = |random: &mut Random, length: u64| {
        (0..length).map(|_| char::from(b'0' + random.below(10) as u8)).collect::<String>()
    };
    let mut text = String::new();
    if random.below(3) == 0 {
        text.push('-');
    }
    let length = random.below(24);
    text.push(char::from(if length == 0 { b'0' } else { b'1' + random.below(9) as u8 }));
    text += &digits(random, length);
    if random.below(2) == 0 {
        let length = 1 + random.below(22);
        text = text + "." + &digits(random, length);
    }
    if random.below(4) == 0 {
        let (letter, sign) = (["e", "E"][random.below(2) as usize], ["", "+", "-"][random.below(3) as usize]);
        text = text + letter + sign + &random.below(250).to_string();
    }
    text
}

/// The text of the value behind `"name":` in JSON without spaces.
fn text_of<'t>(json: &'t str, name: &str) -> &'t str {
    let from = json.find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {json}")) + name.len() + 3;
    let rest = &json[from..];
    let end = rest.find([',', '}', ']']).expect("an end");
    rest[..end].trim_matches('"')
}

fn run(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = gateway.command(&[arguments, &["CONFIG"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn any_number_keeps_its_text_through_key_id_mask_keep_edit_replay_and_export() {
    let centre = Centre::start();
    let destination = centre.destination("central");
    let mut gateway = Gateway::prepare("numbers", &format!("mask_key = \"mask.key\"\n{destination}"));
    std::fs::write(gateway.folder.join("mask.key"), "a key of more than sixteen bytes").expect("written");
    std::fs::write(gateway.folder.join("contracts/card.toml"), CONTRACT).expect("written");
    std::fs::write(gateway.folder.join("contracts/card.json"), SCHEMA).expect("written");
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let mut random = Random::seeded();
    let mut numbers = BTreeSet::from([
        "89490200001234567890".to_owned(),
        "89490200001234567891".into(),
        "9007199254740993.0".into(),
        "-0".into(),
        "1E5".into(),
    ]);
    while numbers.len() < 60 {
        numbers.insert(number(&mut random));
    }
    // Every third is refused first, and an operator adds what is missing.
    for (index, number) in numbers.iter().enumerate() {
        let ok = if index % 3 == 0 { "" } else { ",\"ok\":true" };
        let payload = format!(
            r#"{{ "k":{number}, "i" : {number},"deep":{{"n":{number},"gone":1}},"list":[ {number} ],"secret":{number}{ok}}}"#
        );
        client.send(&publish(true, 1, index as u16 + 1, "cards/x", &[], payload.as_bytes()));
        assert_eq!(client.receive().expect("a PUBACK").len(), 3);
    }
    let letters: serde_json::Value = serde_json::from_str(&run(&gateway, &["dead", "list", "--json"])).expect("JSON");
    let letters = letters.as_array().expect("a list");
    assert_eq!(letters.len(), numbers.len().div_ceil(3));
    for letter in letters {
        run(&gateway, &["dead", "edit", &letter["id"].to_string(), "--set", "/ok=true"]);
    }
    let cards = |centre: &Centre, is_replay: bool| -> BTreeMap<String, String> {
        let arrived = centre.arrived().into_iter();
        let wanted = arrived.filter(|one| one.topic.contains("/card/") && one.is_marked("replay") == is_replay);
        wanted
            .map(|one| String::from_utf8(one.payload).expect("UTF-8"))
            .map(|text| (text_of(&text, "subject").to_owned(), text))
            .collect()
    };
    let check = |found: &BTreeMap<String, String>, how: &str| {
        for number in &numbers {
            let text =
                found.get(number).unwrap_or_else(|| panic!("{how}: no event has the key {number}: {:?}", found.keys()));
            for name in ["k", "i", "n", "id", "subject"] {
                assert_eq!(text_of(text, name), number, "{how}: {name} in {text}");
            }
            assert!(text.contains(&format!("\"list\":[{number}]")) && !text.contains("gone"), "{how}: {text}");
        }
        let masked: BTreeSet<&str> = found.values().map(|text| text_of(text, "secret")).collect();
        assert_eq!(masked.len(), numbers.len(), "{how}: different numbers have different hashes");
    };
    centre.await_that("all are delivered", PATIENCE, |centre| cards(centre, false).len() == numbers.len());
    check(&cards(&centre, false), "delivered");
    let topics: BTreeSet<String> =
        centre.arrived().into_iter().map(|one| one.topic).filter(|topic| topic.contains("/card/")).collect();
    assert_eq!(topics.len(), numbers.len(), "each key has its topic");
    run(&gateway, &["replay", "--to", "central", "--stream", "card", "--detach"]);
    centre.await_that("all are replayed", PATIENCE, |centre| cards(centre, true).len() == numbers.len());
    check(&cards(&centre, true), "replayed");
    let exported = run(&gateway, &["export"]);
    let exported = exported.lines().filter(|line| line.contains("card.v1"));
    check(&exported.map(|line| (text_of(line, "subject").to_owned(), line.to_owned())).collect(), "exported");
}
