//! The documents for users: links, tables of keys, examples, and tutorials that are pasted into a shell.

use crate::common::free_address;
use crate::common::gateway::scratch_folder;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay");

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a page of the repository.
fn page(name: &str) -> String {
    std::fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every page in a folder, by its path there. The tables of the conformance tests are no pages.
pub fn pages(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_other = ["target", ".git", "node_modules", "conformance", "foreign"].contains(&name.as_str());
            if path.is_dir() && !is_other {
                walk(root, &path, found);
            } else if name.ends_with(".md") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.insert(path.strip_prefix(root).expect("within").to_owned(), text);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// The lines of a page outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The anchors that GitHub gives the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect()
    };
    headings.map(|heading| anchor(heading).replace(' ', "-")).collect()
}

/// The links of a page to other places of the repository.
fn links(text: &str) -> Vec<String> {
    let of_line = |line: &str| -> Vec<String> {
        let ends = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        ends.filter(|link| !link.contains("://")).map(str::to_owned).collect()
    };
    prose(text).flat_map(of_line).collect()
}

/// The links of the pages in a folder that lead to no file there, or to no heading.
fn broken_links(root: &Path) -> Vec<String> {
    let pages = pages(root);
    let mut broken = Vec::new();
    for (name, text) in &pages {
        for link in links(text) {
            let (target, anchor) = link.split_once('#').map_or((link.as_str(), None), |(to, at)| (to, Some(at)));
            let mut path = name.parent().unwrap_or(Path::new("")).to_owned();
            for part in Path::new(target).components() {
                match part {
                    Component::ParentDir => drop(path.pop()),
                    part => path.push(part),
                }
            }
            let path = if target.is_empty() { name.clone() } else { path };
            let is_there = root.join(&path).is_file();
            let has_anchor =
                anchor.is_none_or(|anchor| pages.get(&path).is_some_and(|text| anchors(text).contains(anchor)));
            if !is_there || !has_anchor {
                broken.push(format!("{}: {link}", name.display()));
            }
        }
    }
    broken
}

/// The blocks of code of a language.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// A section of a page, from its heading to the next one of the same or a higher level.
fn section<'t>(text: &'t str, heading: &str) -> &'t str {
    let start = text.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let level = heading.split(' ').next().unwrap_or_default();
    let body = &text[start + heading.len()..];
    let next = (1..=level.len()).filter_map(|depth| body.find(&format!("\n{} ", "#".repeat(depth)))).min();
    &body[..next.unwrap_or(body.len())]
}

/// The names between back quotes in the first cells of the tables of a section.
fn keys_of_tables(section: &str) -> BTreeSet<String> {
    let cells = section.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.map(|name| name.rsplit('.').next().unwrap_or(name).to_owned()).collect()
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    assert_eq!(broken_links(repository()), Vec::<String>::new());
}

/// A technician has the package and not the repository.
#[test]
fn no_link_leads_out_of_the_package() {
    let folder = scratch_folder("pages");
    let written = Command::new(repository().join("cross/pages")).arg(folder.path()).status().expect("cross/pages");
    assert!(written.success());
    assert_eq!(broken_links(folder.path()), Vec::<String>::new());
    assert!(folder.path().join("tests/central/consumer.py").is_file());
}

#[test]
fn the_readme_is_short_and_has_both_commands() {
    let text = page("README.md");
    assert!(text.len() <= 10_000, "{} bytes", text.len());
    for command in ["cargo run --release -- demo", "tests/run", "```mermaid"] {
        assert!(text.contains(command), "{command}");
    }
}

/// What `forebay check` says of a configuration and of further files in its folder.
pub fn check(configuration: &str, files: &[(&str, &str)]) -> String {
    let folder = scratch_folder("documents");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("written");
    };
    write("forebay.toml", configuration);
    std::fs::create_dir_all(folder.path().join("contracts")).expect("a folder");
    files.iter().for_each(|(name, text)| write(name, text));
    let said = Command::new(PROGRAM)
        .args(["check", "--json", "--config", "forebay.toml"])
        .current_dir(folder.path())
        .output()
        .expect("forebay check");
    String::from_utf8(said.stdout).expect("text") + &String::from_utf8_lossy(&said.stderr)
}

/// The keys that the program knows where `unknown_key` is one that it does not know.
pub fn known_keys(said: &str) -> BTreeSet<String> {
    let list = said.split("unknown field `unknown_key`, expected").nth(1).unwrap_or_else(|| panic!("{said}"));
    let list = list.split('"').next().unwrap_or_default();
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

pub const HEAD: &str = "environment = \"test\"\nsite = \"plant-01\"\ndata_dir = \"data\"\n";

/// The tables of the configuration: the heading of each in the reference, and what stands in front of its keys in a file.
pub fn tables() -> Vec<(&'static str, String)> {
    let mqtt = "[[source.mqtt]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"\n";
    let modbus = "[[source.modbus]]\nname = \"a\"\nurl = \"tcp://a:1\"\n";
    let odoo = "[[source.odoo]]\nname = \"a\"\nurl = \"https://a\"\ndatabase = \"a\"\nkey_file = \"a\"\n";
    let destination = "[[destination]]\nname = \"a\"\nurl = \"mqtt://a\"\n";
    vec![
        ("## Top level", String::new()),
        ("## `[[source.mqtt]]`: MQTT listener", mqtt.to_owned()),
        ("## `[[source.mqtt]]`: MQTT listener", format!("{mqtt}[[source.mqtt.acl]]\n")),
        ("## TLS of a listener", format!("{mqtt}[source.mqtt.tls]\n")),
        ("## `[[source.http]]`: HTTP listener", "[[source.http]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"\n".into()),
        ("## `[[source.broker]]`: plant broker", "[[source.broker]]\nname = \"a\"\n".into()),
        ("## `[[source.modbus]]`: Modbus bus", modbus.to_owned()),
        ("## `[[source.modbus]]`: Modbus bus", format!("{modbus}[[source.modbus.unit]]\n")),
        ("## `[[source.modbus]]`: Modbus bus", format!("{modbus}[[source.modbus.write]]\n")),
        ("## `[[source.modbus]]`: Modbus bus", format!("{modbus}[source.modbus.serial]\n")),
        ("## `[[source.odoo]]`: Odoo", odoo.to_owned()),
        ("## `[[source.odoo]]`: Odoo", format!("{odoo}[source.odoo.hook]\n")),
        (
            "## `[[source.folder]]`: files of a folder",
            "[[source.folder]]\nname = \"a\"\npath = \"a\"\nformat = \"csv\"\n".into(),
        ),
        ("## `[[destination]]`: central", destination.to_owned()),
        ("## TLS of a connection", format!("{destination}[destination.tls]\n")),
        ("## Proxy", format!("{destination}[destination.proxy]\n")),
        ("## Budget", format!("{destination}[destination.budget]\n")),
        ("## Budget", format!("{destination}[destination.budget.lane.bulk]\n")),
        ("## `[lane.NAME]`: lanes", "[lane.bulk]\n".into()),
        ("## `[lane.NAME]`: lanes", "[lane.bulk.batch]\n".into()),
        ("## `[dead]`: dead letters", "[dead]\n".into()),
        ("## `[monitoring]` and `[log]`", "[monitoring]\n".into()),
        ("## `[monitoring]` and `[log]`", "[log]\n".into()),
        ("## `[watch]`: business exceptions", "[watch.rule.order-late]\n".into()),
        ("## `[watch]`: business exceptions", "[watch.machines]\n".into()),
    ]
}

#[test]
fn the_tables_have_every_key_of_the_configuration() {
    let text = page("config/README.md");
    // Tables have pages or sections of their own; the names of lanes and kinds are no keys.
    let apart = ["source", "destination", "lane", "dead", "watch", "monitoring", "log"];
    for (heading, before) in tables() {
        let known = known_keys(&check(&format!("{HEAD}{before}unknown_key = 1\n"), &[]));
        let described = keys_of_tables(section(&text, heading));
        let missing: Vec<_> =
            known.iter().filter(|key| !described.contains(*key) && !apart.contains(&key.as_str())).collect();
        assert!(missing.is_empty(), "{heading}, after {before:?}: {missing:?}");
    }
}

#[test]
fn the_tables_have_every_key_of_contracts_and_device_tables() {
    let contract = "name = \"a\"\nversion = \"1.0.0\"\nowner = \"a\"\n";
    let odoo = format!("{contract}match = {{ source = \"odoo\" }}\n[odoo]\nmodel = \"a\"\nfields = [\"a\"]\n");
    let bus = "[[source.modbus]]\nname = \"a\"\nurl = \"tcp://a:1\"\nunit = [{ name = \"a\", device = \"a\" }]\n";
    for (name, heading, file, before) in [
        ("config/contracts/README.md", "## Keys", "contracts/a.toml", contract.to_owned()),
        ("config/contracts/README.md", "## Keys", "contracts/a.toml", format!("{contract}[match]\n")),
        ("config/contracts/README.md", "## Keys", "contracts/a.toml", format!("{contract}[retention]\n")),
        ("config/contracts/README.md", "## Keys", "contracts/a.toml", format!("{contract}[columns.a]\n")),
        ("config/commands.md", "## Keys", "contracts/a.toml", "kind = \"command\"\n".into()),
        ("config/commands.md", "## Keys", "contracts/a.toml", "kind = \"command\"\n[confirm]\n".into()),
        ("config/contracts/odoo/README.md", "## Contracts for Odoo", "contracts/a.toml", odoo.clone()),
        ("config/contracts/odoo/README.md", "## Contracts for Odoo", "contracts/a.toml", odoo + "[[odoo.event]]\n"),
        ("config/devices/README.md", "## A table of your own", "devices/a.toml", String::new()),
        ("config/devices/README.md", "## A table of your own", "devices/a.toml", "[group.a]\n".into()),
        ("config/devices/README.md", "## A table of your own", "devices/a.toml", "[[hole]]\n".into()),
        ("config/devices/README.md", "## A table of your own", "devices/a.toml", "[[point]]\n".into()),
    ] {
        let configuration = if file.starts_with("devices") { format!("{HEAD}{bus}") } else { HEAD.to_owned() };
        let known = known_keys(&check(&configuration, &[(file, &format!("{before}unknown_key = 1\n"))]));
        let text = page(name);
        let described = keys_of_tables(section(&text, heading));
        let missing: Vec<_> = known
            .iter()
            .filter(|key| {
                !described.contains(*key) && !["match", "retention", "event", "group", "point"].contains(&key.as_str())
            })
            .collect();
        assert!(missing.is_empty(), "{name}, {heading}, after {before:?}: {missing:?}");
    }
}

#[test]
fn the_tables_have_every_metric_and_alert() {
    let text = page("config/monitoring/README.md");
    let metrics = page("src/telemetry/metrics.rs");
    let names = metrics.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let kind = words.nth(1)?;
        let name = words.next()?;
        ["Counter", "Gauge", "Histogram"].contains(&kind).then(|| name.trim_matches('"').to_owned())
    });
    let alerts = page("config/monitoring/forebay-alerts.yml");
    let alerts = alerts.lines().filter_map(|line| Some(line.trim().strip_prefix("- alert: ")?.to_owned()));
    let wanted: Vec<String> = names.chain(alerts).collect();
    assert!(wanted.len() > 100, "{wanted:?}");
    let missing: Vec<_> = wanted.iter().filter(|name| !text.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Examples are configurations, contracts, device tables, or parts of one. Files that they name do not exist here.
#[test]
fn the_program_understands_every_example() {
    let contract = "name = \"a\"\nversion = \"1.0.0\"\nowner = \"a\"\n";
    let bus = "[[source.modbus]]\nname = \"a\"\nurl = \"tcp://a:1\"\nunit = [{ name = \"a\", device = \"a\" }]\n";
    let mut count = 0;
    for (name, text) in pages(repository()) {
        for block in blocks(&text, "toml") {
            count += 1;
            let said = if block.contains("[[point]]") {
                check(&format!("{HEAD}{bus}"), &[("devices/a.toml", block)])
            } else if block.starts_with("name = ") {
                check(HEAD, &[("contracts/a.toml", block)])
            } else if block.starts_with("match = ") {
                check(HEAD, &[("contracts/a.toml", &format!("{contract}{block}"))])
            } else if block.starts_with("keep = ") || block.starts_with("[properties]") {
                let all = "match = { source = \"mqtt\", topic = \"#\" }\n";
                check(HEAD, &[("contracts/a.toml", &format!("{contract}{all}{block}"))])
            } else {
                let before = match block {
                    _ if block.starts_with("environment") => "",
                    _ if block.starts_with("write = ") => &format!("{HEAD}{bus}"),
                    _ if block.starts_with("key = ") => &format!(
                        "{HEAD}[[source.mqtt]]\nname = \"a\"\nlisten = \"[::1]:1\"\n[source.mqtt.tls]\ncert = \"a\"\n"
                    ),
                    _ if block.starts_with("[[source.mqtt.acl]]") => {
                        &format!("{HEAD}[[source.mqtt]]\nname = \"a\"\nlisten = \"[::1]:1\"\n")
                    }
                    _ if block.starts_with("[source.odoo.hook]") => &format!(
                        "{HEAD}[[source.odoo]]\nname = \"a\"\nurl = \"https://a\"\ndatabase = \"a\"\nkey_file = \"a\"\n"
                    ),
                    _ => HEAD,
                };
                check(&format!("{before}{block}"), &[])
            };
            let wrong =
                ["unknown field", "unknown value", "invalid type", "missing field", "no valid TOML", "out of bounds"];
            let is_understood = said.starts_with('{') && !wrong.iter().any(|wrong| said.contains(wrong));
            assert!(is_understood, "{}: {block}\n{said}", name.display());
        }
    }
    assert!(count > 20, "{count} examples");
}

/// The contracts of the package, as files of a configuration's folder.
fn shipped_contracts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![repository().join("config/contracts")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = path.strip_prefix(repository().join("config")).expect("below").display().to_string();
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("toml" | "json") => found.push((name, std::fs::read_to_string(&path).expect("text"))),
                _ => {}
            }
        }
    }
    found
}

/// An example of lanes was once refused beside the contracts of the package: `live-first` against `energy.meter`.
#[test]
fn an_example_has_no_problem_with_the_contracts_of_the_package() {
    let shipped = shipped_contracts();
    let shipped: Vec<_> = shipped.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert!(shipped.len() > 20, "{} files", shipped.len());
    let problems = |configuration: &str, files: &[(&str, &str)]| -> (usize, BTreeSet<String>) {
        let said = check(configuration, files);
        let answer: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
        let found = answer["problems"].as_array().cloned().unwrap_or_default();
        (
            usize::from(answer["good"] == true),
            found.iter().map(|one| format!("{}: {}", one["key"], one["message"])).collect(),
        )
    };
    let (mut count, mut good) = (0, 0);
    for (name, text) in pages(repository()) {
        let starts = ["[lane", "[[destination]]", "[[source", "[dead]", "[monitoring]", "[log]", "environment"];
        for block in
            blocks(&text, "toml").into_iter().filter(|block| starts.iter().any(|start| block.starts_with(start)))
        {
            let before = if block.starts_with("environment") { "" } else { HEAD };
            let configuration = format!("{before}{block}");
            let (_, alone) = problems(&configuration, &[]);
            let (is_good, with_contracts) = problems(&configuration, &shipped);
            let new: Vec<_> = with_contracts.difference(&alone).collect();
            assert!(new.is_empty(), "{}: {block}\n{new:#?}", name.display());
            (count, good) = (count + 1, good + is_good);
        }
    }
    assert!(count > 10 && good > 3, "{count} examples, {good} of them complete");
}

/// Runs the commands of a section in a shell, with other ports and folders than the page has. Returns what they print.
fn paste(page_name: &str, heading: &str, ports: &[&str], others: &[(&str, &str)]) -> String {
    let text = page(page_name);
    let mut script = blocks(section(&text, heading), "sh").concat();
    for (index, port) in ports.iter().enumerate() {
        script = script.replace(port, &format!("<port {index}>"));
    }
    for index in 0..ports.len() {
        script = script.replace(&format!("<port {index}>"), &free_address().port().to_string());
    }
    for (from, to) in others {
        assert!(script.contains(from), "{from}: {script}");
        script = script.replace(from, to);
    }
    let programs = Path::new(PROGRAM).parent().expect("a folder").display();
    let path = format!("{programs}:{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let ran = Command::new("timeout")
        .args(["100", "bash", "-e", "-c", &script])
        .current_dir(repository())
        .env("PATH", path)
        .output()
        .expect("bash");
    let printed = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{script}\n{printed}");
    printed
}

#[test]
fn the_first_event_of_the_readme_arrives_also_after_an_outage() {
    let folder = scratch_folder("first-event");
    let place = folder.path().display().to_string();
    let printed =
        paste("README.md", "## First event in ten minutes", &["1883", "1884"], &[("/tmp/first-event", &place)]);
    for id in ["\"id\":\"1\"", "\"id\":\"2\""] {
        let arrived = |line: &str| line.starts_with("test/plant-01/machine.state/v1/press-4 ") && line.contains(id);
        assert!(printed.lines().any(arrived), "{id}: {printed}");
    }
}

#[test]
fn the_tutorial_on_tls_brings_an_event_to_central() {
    let folder = scratch_folder("plant-tls");
    let place = folder.path().display().to_string();
    let printed = paste("config/tls.md", "## A plant with TLS", &["8883", "8884"], &[("/tmp/plant-tls", &place)]);
    assert!(printed.contains("test/plant-01/machine.state/v1/press-4 "), "{printed}");
    assert!(printed.lines().any(|line| line.starts_with("press-4  press-4 ")), "{printed}");
}

#[test]
fn the_tutorial_on_modbus_reads_the_meter_of_the_demo() {
    let folder = scratch_folder("first-machine");
    let place = folder.path().display().to_string();
    let others = [
        ("/tmp/first-machine", place.as_str()),
        ("timeout 20 forebay tail --config forebay.toml", "timeout 12 forebay tail --config forebay.toml || true"),
    ];
    let printed = paste("config/devices/README.md", "## A machine over Modbus", &[], &others);
    assert!(printed.contains("unit 1           answers") && printed.contains("voltage_l1_v"), "{printed}");
    assert!(printed.contains("energy.reading"), "{printed}");
}
