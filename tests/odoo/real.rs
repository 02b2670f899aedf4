//! The real Odoo, 19 and 14, which is driven through the lives of orders.
//!
//! FOREBAY_ODOO=1 (`tests/run --odoo`) runs all of it, and installs each Odoo in a tree of its own first (`up`), which
//! takes root and some ten minutes. FOREBAY_ODOO=quick runs what takes a minute or two; `tests/run` does where the trees are there.

mod business;
mod complete;
mod disorder;
mod felt;
mod joined;
mod spared;
mod stuck;
mod timely;
mod trouble;

use super::Plant;
use crate::common::need::Need;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long the gateway's polls are apart.
const INTERVAL: Duration = Duration::from_secs(2);
const TOKEN: &str = "0123456789abcdef01234567";

/// Where `up` keeps an Odoo of this version.
fn state(version: u32) -> PathBuf {
    match (std::env::var_os("PLANT_ODOO_STATE"), version) {
        (Some(folder), 19) => folder.into(),
        (_, 19) => "/var/tmp/plant-odoo".into(),
        (_, version) => format!("/var/tmp/plant-odoo-{version}").into(),
    }
}

fn tool(version: u32, name: &str) -> Command {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/odoo").join(name);
    let mut command = Command::new(file);
    command.env("PLANT_ODOO_VERSION", version.to_string()).env("PLANT_ODOO_STATE", state(version));
    command.stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the tool runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything that a command said.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What `up env` prints.
struct Real {
    version: u32,
    url: String,
    viewer_key: String,
    admin_key: String,
    /// Whether all is run, and not what is quick.
    is_long: bool,
    /// One test at a time has this Odoo, whichever run of tests it belongs to.
    _lock: std::fs::File,
}

impl Real {
    /// A running Odoo 19 with a seeded plant; `None` where it is not wanted.
    fn start() -> Option<Self> {
        Self::of(19)
    }

    /// The same of another version.
    fn of(version: u32) -> Option<Self> {
        let wanted = std::env::var("FOREBAY_ODOO").unwrap_or_default();
        let is_there = wanted != "quick" || state(version).join("installed").exists();
        if !Need::Odoo.is_met(!wanted.is_empty() && is_there, "the real Odoo (tests/run --odoo)") {
            return None;
        }
        std::fs::create_dir_all(state(version)).expect("a folder");
        let lock = std::fs::File::create(state(version).join("test.lock")).expect("a file");
        lock.lock().expect("locked");
        run(&mut tool(version, "up"));
        let text = run(tool(version, "up").arg("env"));
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.unwrap_or_else(|| panic!("no {name}")).to_owned()
        };
        let (url, viewer_key) = (value("ODOO_URL"), value("ODOO_VIEWER_API_KEY"));
        let admin_key = value("ODOO_ADMIN_API_KEY");
        let real = Self { version, url, viewer_key, admin_key, is_long: wanted != "quick", _lock: lock };
        run(&mut real.tool("seed"));
        Some(real)
    }

    /// The same, for what takes long.
    fn of_for_long(version: u32) -> Option<Self> {
        let is_quick = std::env::var("FOREBAY_ODOO").is_ok_and(|wanted| wanted == "quick");
        let has_time = Need::OdooLong.is_met(!is_quick, "what takes long with the real Odoo (tests/run --odoo)");
        if has_time { Self::of(version) } else { None }
    }

    /// A program of `tests/odoo`, for this Odoo.
    fn tool(&self, name: &str) -> Command {
        let mut command = tool(self.version, name);
        command.env("ODOO_URL", &self.url).env("ODOO_VERSION", self.version.to_string());
        command
    }

    fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("http://").parse().expect("an address")
    }

    /// A call in the administrator's name.
    fn call(&self, call: &str, arguments: &Value) -> Value {
        let answer = self.ask(&self.admin_key, call, arguments);
        assert!(answer.get("debug").is_none(), "{call} {arguments}: {answer:#}");
        answer
    }

    /// A call in anybody's name: its result or its error.
    fn ask(&self, key: &str, call: &str, arguments: &Value) -> Value {
        if self.version < 19 {
            return self.ask_jsonrpc(key, call, arguments);
        }
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "120", "-H", &format!("Authorization: bearer {key}")])
            .args(["-H", "X-Odoo-Database: plant", "--json", &arguments.to_string()])
            .arg(format!("{}/json/2/{call}", self.url));
        parsed(&run(&mut curl))
    }

    /// The same over `/jsonrpc`. The names of some arguments differ between versions, their places do not.
    fn ask_jsonrpc(&self, key: &str, call: &str, arguments: &Value) -> Value {
        let post = |service: &str, method: &str, args: Value| {
            let body = json!({"jsonrpc": "2.0", "id": 1, "method": "call",
                "params": {"service": service, "method": method, "args": args}});
            let mut curl = Command::new("curl");
            curl.args(["-sS", "-m", "120", "--json", &body.to_string()]).arg(format!("{}/jsonrpc", self.url));
            let answer = parsed(&run(&mut curl));
            answer.get("error").map_or_else(|| answer["result"].clone(), |error| error["data"].clone())
        };
        let user = if key == self.admin_key { "admin" } else { "viewer" };
        let number = post("common", "authenticate", json!(["plant", user, key, {}]));
        let (model, method) = call.split_once('/').expect("model and method");
        let mut named = arguments.as_object().cloned().expect("arguments");
        let places = ["ids", "domain", "vals_list", "vals"];
        let first: Vec<Value> = places.iter().filter_map(|name| named.remove(*name)).collect();
        post("object", "execute_kw", json!(["plant", number, key, model, method, first, named]))
    }

    /// The first record of a search.
    fn find(&self, model: &str, domain: &Value) -> i64 {
        let found = self.call(&format!("{model}/search"), &json!({"domain": domain, "limit": 1, "order": "id"}));
        found[0].as_i64().unwrap_or_else(|| panic!("no {model} with {domain}"))
    }

    fn create(&self, model: &str, values: &Value) -> i64 {
        let made = self.call(&format!("{model}/create"), &json!({"vals_list": [values]}));
        made[0].as_i64().expect("a number")
    }

    fn write(&self, model: &str, id: i64, values: &Value) {
        self.call(&format!("{model}/write"), &json!({"ids": [id], "vals": values}));
    }

    /// Calls a method on a record.
    fn act(&self, model: &str, method: &str, id: i64) -> Value {
        // With these, closing an order asks nothing back.
        let context = json!({"skip_backorder": true, "skip_consumption": true});
        self.call(&format!("{model}/{method}"), &json!({"ids": [id], "context": context}))
    }

    /// An order of the seeded plant: product and bill of materials by code.
    fn order(&self, code: &str, more: &Value) -> i64 {
        let product = self.find("product.product", &json!([["default_code", "=", code]]));
        let bill = self.find("mrp.bom", &json!([["code", "=", format!("{code}/A")]]));
        let mut values = json!({"product_id": product, "bom_id": bill, "product_qty": 4});
        let members = more.as_object().expect("values").clone();
        values.as_object_mut().expect("values").extend(members);
        self.create("mrp.production", &values)
    }

    /// Puts so much of a product into the stock as no test uses up: others have lived in this Odoo before.
    fn fill_stock(&self, code: &str) {
        let product = self.find("product.product", &json!([["default_code", "=", code]]));
        let stock = self.find("stock.location", &json!([["usage", "=", "internal"], ["name", "=", "Stock"]]));
        let counted = json!({"product_id": product, "location_id": stock, "inventory_quantity": 1_000_000});
        let asked = json!({"vals_list": [counted], "context": {"inventory_mode": true}});
        let quant = self.call("stock.quant/create", &asked)[0].as_i64().expect("a number");
        self.act("stock.quant", "action_apply_inventory", quant);
    }

    fn plant(&self, name: &str, interval: &str, source: &str) -> Plant {
        let user = if self.version < 19 { "user = \"viewer\"\n" } else { "" };
        let source = format!("{user}{source}");
        let plant = Plant::prepare(name, &self.url, interval, &source, "[watch]\nevery = \"2s\"\n");
        std::fs::write(plant.gateway.folder.join("odoo.key"), &self.viewer_key).expect("written");
        std::fs::write(plant.gateway.folder.join("hook.token"), TOKEN).expect("written");
        std::fs::write(plant.gateway.folder.join("admin.key"), &self.admin_key).expect("written");
        plant
    }

    /// Has Odoo trust an authority when it posts.
    fn trust(&self, authority: &Path) {
        run(self.tool("up").arg("trust").arg(authority));
    }

    fn sql(&self, text: &str) -> Child {
        self.tool("up").args(["psql", "-qAtc", text]).stdout(Stdio::null()).spawn().expect("psql")
    }

    fn sql_now(&self, text: &str) {
        assert!(self.sql(text).wait().expect("psql ends").success(), "{text}");
    }

    /// The rows of a query, with their columns.
    fn rows(&self, query: &str) -> Vec<Vec<String>> {
        let text = run(self.tool("up").args(["psql", "-qAtc", query]));
        text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
    }

    fn odoo_log(&self) -> String {
        let log = std::fs::read(state(self.version).join("log/odoo.log")).expect("the log of Odoo");
        String::from_utf8_lossy(&log).into_owned()
    }
}

/// JSON as Python writes it: a number that is none becomes `null`.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).or_else(|_| serde_json::from_str(&text.replace(": NaN", ": null"))).expect("JSON")
}

/// What a source needs for hints over TLS.
fn hook(address: SocketAddr) -> String {
    format!(
        "[source.odoo.hook]\nlisten = \"{address}\"\ntoken_file = \"hook.token\"\nurl = \"https://{address}\"\n\
         tls = {{ cert = \"$PKI/server.pem\", key = \"$PKI/server.key\" }}\n"
    )
}

/// A hook that is set up in Odoo until the value is dropped.
struct Hints<'a>(&'a Plant);

fn webhook(plant: &Plant, what: &str, key: &str) -> Output {
    let key = plant.gateway.folder.join(key).display().to_string();
    plant.gateway.command(&["odoo", "webhook", what, "--admin-key", &key, "CONFIG"])
}

impl<'a> Hints<'a> {
    fn install(real: &Real, plant: &'a Plant) -> Self {
        real.trust(&plant.pki.ca);
        let output = webhook(plant, "--install", "admin.key");
        assert!(output.status.success(), "{}", said(&output));
        Self(plant)
    }
}

impl Drop for Hints<'_> {
    fn drop(&mut self) {
        println!("{}", said(&webhook(self.0, "--remove", "admin.key")).trim());
    }
}
