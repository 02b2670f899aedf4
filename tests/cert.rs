//! `forebay cert`: the certificates that it writes work with OpenSSL, Mosquitto and the gateway itself.

use crate::common::gateway::scratch_folder;
use crate::common::need;
use crate::common::program::{forebay, good, said};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

#[track_caller]
fn refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    let output = forebay(folder, arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    words.iter().for_each(|word| assert!(text.contains(word), "\"{word}\" is missing in: {text}"));
}

fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().expect("openssl");
    let text = said(&output);
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
    text
}

/// A plant's certificates with four commands, once 21 steps with OpenSSL.
#[test]
fn four_commands_make_the_certificates_of_a_plant_and_openssl_agrees() {
    let folder = scratch_folder("cert");
    let folder = folder.path();
    good(folder, &["cert", "ca", "--name", "Plant 01 CA"]);
    let names = ["--name", "gw-01", "--names", "gw-01.plant,10.0.0.21,localhost", "--environment", "test"];
    good(folder, &[&["cert", "gateway"], &names[..]].concat());
    let told = good(folder, &["cert", "device", "press-4"]);
    assert!(told.contains("plant/line-1/press-4/state"), "{told}");
    good(folder, &["cert", "server", "localhost", "--names", "127.0.0.1"]);
    for (file, purpose) in [
        ("gateway.pem", "sslserver"),
        ("gateway.pem", "sslclient"),
        ("press-4.pem", "sslclient"),
        ("localhost.pem", "sslserver"),
    ] {
        openssl(folder, &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", file]);
    }
    for key in ["ca.key", "gateway.key", "press-4.key", "localhost.key"] {
        assert_eq!(std::fs::metadata(folder.join(key)).expect("a key").mode() & 0o7777, 0o600, "{key}");
    }
    let text = good(folder, &["cert", "show", "gateway.pem", "press-4.pem", "--host", "gw-01.plant"]);
    for word in
        ["DNS:gw-01.plant", "IP:10.0.0.21", "URI:forebay:environment:test", "as client \"press-4\"", "expires 20"]
    {
        assert!(text.contains(word), "\"{word}\" is missing in: {text}");
    }
    assert!(!text.contains('✗'), "{text}");
    refused(folder, &["cert", "show", "gateway.pem", "--host", "gw-02"], &["✗", "not for gw-02", "gw-01.plant"]);
    let json = good(folder, &["cert", "show", "--json", "ca.pem"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["certificates"][0]["is_authority"], true);
}

#[test]
fn no_certificate_or_key_is_replaced_without_yes() {
    let folder = scratch_folder("cert");
    let folder = folder.path();
    good(folder, &["cert", "ca"]);
    let before = std::fs::read(folder.join("ca.key")).expect("a key");
    refused(folder, &["cert", "ca"], &["ca.key exists", "nothing was written", "--yes"]);
    assert_eq!(std::fs::read(folder.join("ca.key")).expect("a key"), before);
    good(folder, &["cert", "device", "press-4"]);
    std::fs::remove_file(folder.join("press-4.key")).expect("removed");
    refused(folder, &["cert", "device", "press-4"], &["press-4.pem exists"]);
    assert!(!folder.join("press-4.key").exists(), "neither file is written if one of them exists");
    good(folder, &["cert", "device", "press-4", "--yes"]);
    refused(folder, &["cert", "renew", "press-4.pem"], &["replace press-4.pem", "--yes"]);
    for wrong in ["plant/press", "press#", ""] {
        refused(folder, &["cert", "device", wrong], &["is no name"]);
    }
    refused(folder, &["cert", "server", "../central"], &["is no host name"]);
    let empty = scratch_folder("cert");
    refused(
        empty.path(),
        &["cert", "device", "press-4"],
        &["ca.pem does not exist", "forebay cert ca", "forebay cert request"],
    );
}

#[test]
fn a_renewed_certificate_keeps_key_and_names_and_a_timer_renews_only_what_expires_soon() {
    let folder = scratch_folder("cert");
    let folder = folder.path();
    good(folder, &["cert", "ca"]);
    good(folder, &["cert", "gateway", "--name", "gw-01", "--names", "gw-01", "--days", "20"]);
    let contents = || ["gateway.key", "gateway.pem"].map(|name| std::fs::read(folder.join(name)).expect("a file"));
    let shown = openssl(folder, &["x509", "-in", "gateway.pem", "-noout", "-subject", "-ext", "subjectAltName"]);
    let before = contents();
    let text = good(folder, &["cert", "renew", "gateway.pem", "--within", "10d", "--yes"]);
    assert!(text.contains("not renewed") && contents() == before, "{text}");
    good(folder, &["cert", "renew", "gateway.pem", "--within", "30d", "--yes"]);
    let after = contents();
    assert!(after[0] == before[0] && after[1] != before[1], "the key stays, the certificate is new");
    assert_eq!(openssl(folder, &["x509", "-in", "gateway.pem", "-noout", "-subject", "-ext", "subjectAltName"]), shown);
    good(folder, &["cert", "show", "gateway.pem"]);
    good(folder, &["cert", "renew", "gateway.pem", "--new-key", "--yes"]);
    assert_ne!(contents()[0], after[0]);
    good(folder, &["cert", "show", "gateway.pem"]);
    // Another authority cannot renew it.
    let other = scratch_folder("cert");
    good(other.path(), &["cert", "ca", "--name", "Other CA"]);
    let (ca, key) = (other.path().join("ca.pem"), other.path().join("ca.key"));
    let arguments =
        ["cert", "renew", "gateway.pem", "--yes", "--ca", ca.to_str().unwrap(), "--ca-key", key.to_str().unwrap()];
    refused(folder, &arguments, &["was not issued by"]);
}

/// The plant's own authority answers a request; its key never leaves it, and the gateway's key never leaves the gateway.
#[test]
fn the_authority_of_a_company_answers_a_signing_request() {
    let folder = scratch_folder("cert");
    let folder = folder.path();
    good(folder, &["cert", "request", "--name", "gw-01", "--names", "gw-01.plant", "--environment", "test"]);
    let key = std::fs::read(folder.join("gateway.key")).expect("a key");
    good(folder, &["cert", "request", "--name", "gw-01", "--names", "gw-01.plant,10.0.0.21"]);
    assert_eq!(std::fs::read(folder.join("gateway.key")).expect("a key"), key, "a second request uses the same key");
    let text = openssl(folder, &["req", "-in", "gateway.csr", "-noout", "-verify", "-text"]);
    assert!(text.contains("DNS:gw-01.plant") && text.contains("TLS Web Client Authentication"), "{text}");
    openssl(
        folder,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=Company CA",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-keyout",
            "company.key",
            "-out",
            "company.pem",
        ],
    );
    let sign = [
        "x509",
        "-req",
        "-in",
        "gateway.csr",
        "-CA",
        "company.pem",
        "-CAkey",
        "company.key",
        "-copy_extensions",
        "copyall",
        "-days",
        "90",
        "-out",
        "gateway.pem",
    ];
    openssl(folder, &sign);
    let text = good(folder, &["cert", "show", "gateway.pem", "--ca", "company.pem", "--host", "10.0.0.21"]);
    assert!(text.contains("its key is gateway.key") && text.contains("accept it as a server"), "{text}");
    refused(folder, &["cert", "show", "gateway.pem", "--ca", "gateway.pem"], &["✗"]);
}

/// Root makes the certificates, and the service must be able to read its key.
#[test]
fn the_key_that_root_makes_for_the_gateway_belongs_to_the_user_of_the_service() {
    if !need::root("gives a file to another user") {
        return;
    }
    let folder = scratch_folder("cert");
    let folder = folder.path();
    std::fs::create_dir(folder.join("data")).expect("folder");
    std::os::unix::fs::chown(folder.join("data"), Some(65_534), Some(65_534)).expect("owner");
    std::fs::set_permissions(folder.join("data"), std::fs::Permissions::from_mode(0o700)).expect("mode");
    std::fs::write(
        folder.join("forebay.toml"),
        "environment = \"test\"\nsite = \"a\"\nname = \"gw-09\"\ndata_dir = \"data\"\n",
    )
    .expect("written");
    good(folder, &["cert", "ca"]);
    let text = good(folder, &["cert", "gateway"]);
    assert!(text.contains("gw-09") && text.contains("forebay:environment:test"), "{text}");
    good(folder, &["cert", "device", "press-4"]);
    for (file, owner, mode) in
        [("gateway.key", 65_534, 0o600), ("ca.key", 0, 0o600), ("press-4.key", 0, 0o600), ("gateway.pem", 0, 0o644)]
    {
        let found = std::fs::metadata(folder.join(file)).expect("a file");
        assert_eq!((found.uid(), found.mode() & 0o7777), (owner, mode), "{file}");
    }
}

/// It was once "unexpected error: failed to parse private key as RSA, ECDSA, or EdDSA".
#[test]
fn a_key_that_is_too_short_to_sign_is_named_with_its_size() {
    let folder = scratch_folder("cert-short");
    let make =
        ["req", "-x509", "-newkey", "rsa:1024", "-nodes", "-keyout", "gw.key", "-out", "gw.pem", "-subj", "/CN=gw-01"];
    openssl(folder.path(), &make);
    let config = "environment = \"test\"\nsite = \"s\"\ndata_dir = \"data\"\ncontracts = \"contracts\"\n[[source.mqtt]]\nname = \"a\"\nlisten = \"127.0.0.1:1883\"\ntls = { cert = \"gw.pem\", key = \"gw.key\" }\n";
    std::fs::write(folder.path().join("forebay.toml"), config).expect("written");
    std::fs::create_dir(folder.path().join("contracts")).expect("folder");
    refused(folder.path(), &["check"], &["gw.key: is an RSA key with 1024 bits", "2048 to 4096 bits"]);
}
