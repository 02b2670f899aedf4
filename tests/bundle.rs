//! `forebay bundle`: everything that helps, and no secret.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, payload, sum};
use forebay::sources::http::put_token;
use forebay::sources::mqtt::put_user;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Names, without the folder of the bundle, and contents.
fn unpacked(file: &Path) -> BTreeMap<String, String> {
    let packed = std::fs::File::open(file).expect("the bundle");
    let mut archive = tar::Archive::new(zstd::Decoder::new(packed).expect("zstd"));
    let entries = archive.entries().expect("tar");
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.expect("entry");
        let name = entry.path().expect("name").components().skip(1).collect::<std::path::PathBuf>();
        let mut text = Vec::new();
        entry.read_to_end(&mut text).expect("read");
        (name.display().to_string(), String::from_utf8_lossy(&text).into_owned())
    };
    entries.map(read).collect()
}

fn bundle(gateway: &Gateway, name: &str) -> BTreeMap<String, String> {
    let file = gateway.folder.join(name);
    let output = gateway.command(&["bundle", "CONFIG", "--output", file.to_str().expect("text")]);
    assert!(output.status.success(), "{output:?}");
    unpacked(&file)
}

#[test]
fn a_bundle_has_what_helps_and_no_secret_wherever_it_stands() {
    const SECRETS: [&str; 6] = [
        "secret-password-1",
        "secret-mask-key-0123456789",
        "secret-central-3",
        "secret-comment-4",
        "secret-payload-5",
        "secret-dead-6",
    ];
    let centre = Centre::start();
    let mut gateway = Gateway::prepare(
        "bundle",
        &format!(
            "mask_key = \"mask.key\" # {}\n{}\nuser = \"gw\"\npassword_file = \"central.password\"\n",
            SECRETS[3],
            centre.destination("central")
        ),
    );
    let folder = gateway.folder.clone();
    let file = |name: &str| folder.join(name);
    put_user(&file("passwd"), "press", SECRETS[0].as_bytes()).expect("written");
    let token = put_token(&file("tokens"), "erp").expect("written");
    std::fs::write(file("mask.key"), SECRETS[1]).expect("written");
    std::fs::write(file("central.password"), SECRETS[2]).expect("written");
    use std::os::unix::fs::PermissionsExt;
    for name in ["passwd", "tokens", "mask.key", "central.password"] {
        std::fs::set_permissions(file(name), std::fs::Permissions::from_mode(0o600)).expect("set");
    }
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    let text = text.replace("name = \"devices\"\n", "name = \"devices\"\npasswords = \"passwd\"\n");
    std::fs::write(gateway.config(), text).expect("written");
    gateway.run();
    let hello = Hello { login: Some(("press", SECRETS[0])), ..Hello::default() };
    let (mut device, _) = Client::connect(gateway.address, &hello);
    device.publish(true, 1, "plant/press/m1/state", payload(1, 1).replace("some text", SECRETS[4]).as_bytes());
    device.publish(true, 2, "plant/press/m1/nowhere", SECRETS[5].as_bytes());
    gateway.await_status("delivered", Duration::from_secs(20), |status| sum(status, "delivered") >= 1);

    let hashes = std::fs::read_to_string(file("passwd")).expect("read")
        + &std::fs::read_to_string(file("tokens")).expect("read");
    let hashes: Vec<&str> = hashes.split([':', ' ', '\n']).filter(|word| word.len() > 16).collect();
    assert!(hashes.len() >= 2, "{hashes:?}");
    let check = |found: &BTreeMap<String, String>| {
        for (name, text) in found {
            for secret in SECRETS.iter().copied().chain([token.as_str()]).chain(hashes.iter().copied()) {
                assert!(!text.contains(secret), "{secret} is in {name}");
            }
        }
    };
    let found = bundle(&gateway, "running.tar.zst");
    check(&found);
    for name in [
        "status.json",
        "metrics.txt",
        "healthz.jsonl",
        "readyz.jsonl",
        "ledger.json",
        "clock.json",
        "devices.json",
        "replays.json",
        "audit.json",
        "log.txt",
        "versions.txt",
        "machine.txt",
        "journal-files.txt",
        "config/forebay.toml",
        "config/contracts/state.toml",
        "config/contracts/state.json",
    ] {
        assert!(found.get(name).is_some_and(|text| text.len() > 1), "{name}: {:?}", found.keys());
    }
    assert!(
        found["config/forebay.toml"].contains("central.password") && found["config/forebay.toml"].contains("mask.key")
    );
    assert!(
        found["log.txt"].contains("ready") && found["journal-files.txt"].contains("state.redb"),
        "{}",
        found["log.txt"]
    );
    assert!(found["missing.txt"].contains("exceptions.json: this gateway has no watch"), "{}", found["missing.txt"]);

    // With the gateway down, and a secret that somebody wrote where the place of one belongs.
    gateway.stop();
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), text.replace("\"central.password\"", &format!("\"{}\"", SECRETS[2])))
        .expect("written");
    let found = bundle(&gateway, "down.tar.zst");
    check(&found);
    assert!(found["missing.txt"].contains("status.json: no gateway answers"), "{}", found["missing.txt"]);
    assert!(found["config/problems.txt"].contains("destination[0].password_file"), "{}", found["config/problems.txt"]);
    assert!(found.contains_key("journal-files.txt") && found["config/forebay.toml"].contains("(masked)"));

    // A configuration that cannot be read is not taken along.
    std::fs::write(gateway.config(), format!("site = \"{}", SECRETS[2])).expect("written");
    let found = bundle(&gateway, "broken.tar.zst");
    check(&found);
    assert!(!found.contains_key("config/forebay.toml") && found["missing.txt"].contains("it is no valid TOML"));
}
