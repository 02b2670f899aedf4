//! A small server that gives the recorded answers of a real Odoo, 19 or 14, over rows that tests change. It judges harder than
//! the real one: a parameter or method that a version does not have fails the call, as there (`signatures`).

mod signatures;

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const KEY: &str = "0123456789012345678901234567890123456789";
/// Number of the gateway's account.
pub const OWN_ID: i64 = 6;
const RECORDED: &str = include_str!("recorded.json");
const RECORDED_14: &str = include_str!("recorded-14.json");

/// What the server does instead of answering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// A recorded error, for every call.
    Error(&'static str),
    /// A recorded error, for calls of one model.
    ErrorOf(&'static str, &'static str),
    /// A status with a page.
    Page(u16),
    /// A status with `Retry-After`.
    RetryAfter(u16, String),
    /// An answer that ends early, for reads of one model.
    Garbled(&'static str),
    /// It closes without an answer.
    Closed,
    /// It answers so late.
    Slow(Duration),
    /// It speaks only the protocol of 14 to 18.
    Legacy,
}

/// A value of one record that JSON, or Odoo itself, cannot express.
#[derive(Clone, Debug)]
pub enum Bad {
    /// Written into the answer as it is, such as `NaN`.
    Raw(&'static str),
    /// A text that is no value of the field.
    Text(&'static str),
    /// Odoo cannot read it: every read that includes it fails with this message of a `ValueError`.
    Unreadable(&'static str),
}

#[derive(Debug)]
struct State {
    recorded: Value,
    version: u32,
    rows: BTreeMap<String, BTreeMap<i64, Map<String, Value>>>,
    /// Models whose records a rule hides, and single records.
    hidden: Vec<String>,
    hidden_records: BTreeSet<(String, i64)>,
    /// Companies of the account; `None` for all.
    companies: Option<BTreeSet<i64>>,
    /// Fields that are not there, and fields that lead to a model without a right.
    absent_fields: BTreeSet<(String, String)>,
    denied_fields: BTreeSet<(String, String)>,
    bad: BTreeMap<(String, i64, String), Bad>,
    /// Language of the account, and the active ones.
    language: &'static str,
    languages: BTreeSet<&'static str>,
    /// Texts in other languages than English: model, number, field, language.
    texts: BTreeMap<(String, i64, String, &'static str), String>,
    key_expires: Option<String>,
    fault: Fault,
    is_administrator: bool,
    /// How many seconds its clock is ahead.
    ahead: i64,
    calls: Vec<String>,
}

pub struct Odoo {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Odoo {
    pub fn start() -> Self {
        Self::of(19)
    }

    /// An Odoo of this version: 17 and 18 with the models of 19, 15 and 16 with those of 14, and each with its own methods
    /// and parameters (`signatures`).
    pub fn of(version: u32) -> Self {
        let mut recorded: Value = serde_json::from_str(RECORDED).expect("recorded answers");
        if version < 17 {
            let old: Value = serde_json::from_str(RECORDED_14).expect("recorded answers");
            recorded["models"] = old["models"].clone();
            for (name, error) in old["errors"].as_object().expect("errors") {
                recorded["errors"][name] = error.clone();
            }
        }
        let mut rows: BTreeMap<String, BTreeMap<i64, Map<String, Value>>> = BTreeMap::new();
        for (model, about) in recorded["models"].as_object().expect("models") {
            for row in about["rows"].as_array().expect("rows") {
                let row = row.as_object().cloned().expect("a row");
                rows.entry(model.clone()).or_default().insert(row["id"].as_i64().expect("an id"), row);
            }
        }
        let state = State {
            recorded,
            version,
            rows,
            hidden: Vec::new(),
            hidden_records: BTreeSet::new(),
            companies: None,
            absent_fields: BTreeSet::new(),
            denied_fields: BTreeSet::new(),
            bad: BTreeMap::new(),
            language: "en_US",
            languages: BTreeSet::from(["en_US"]),
            texts: BTreeMap::new(),
            key_expires: None,
            fault: if version < 19 { Fault::Legacy } else { Fault::None },
            is_administrator: false,
            ahead: 0,
            calls: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        let theirs = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                let state = Arc::clone(&theirs);
                std::thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        let odoo = Self { address, state };
        // One order that can be told apart by its state, whatever was recorded.
        let any = odoo.any("mrp.production");
        odoo.write_at(
            "mrp.production",
            any,
            json!({"state": "confirmed", "qty_producing": 0.0, "priority": "0"}),
            odoo.now() - 3600,
        );
        odoo
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    pub fn now(&self) -> i64 {
        jiff::Timestamp::now().as_second() + self.state().ahead
    }

    /// Puts its clock forward, as if so many seconds had passed.
    pub fn advance(&self, seconds: i64) {
        self.state().ahead += seconds;
    }

    fn any(&self, model: &str) -> i64 {
        *self.state().rows[model].keys().next_back().expect("a row")
    }

    /// The newest record with a value.
    pub fn newest(&self, model: &str, field: &str, value: impl Into<Value>) -> i64 {
        let value = value.into();
        let state = self.state();
        let mut found = state.rows[model].iter().rev().filter(|(_, row)| row.get(field) == Some(&value));
        *found.next().unwrap_or_else(|| panic!("no {model} with {field} {value}")).0
    }

    pub fn write(&self, model: &str, id: i64, values: Value) {
        self.write_at(model, id, values, self.now());
    }

    pub fn write_as(&self, model: &str, id: i64, values: Value, user: i64) {
        self.put(model, id, values, self.now(), json!([user, "Plant gateway"]));
    }

    pub fn write_at(&self, model: &str, id: i64, values: Value, at: i64) {
        self.put(model, id, values, at, json!([2, "Administrator"]));
    }

    fn put(&self, model: &str, id: i64, values: Value, at: i64, by: Value) {
        self.row(model, id, |row| {
            row.extend(values.as_object().cloned().expect("values"));
            row.insert("write_date".into(), written(at).into());
            row.insert("write_uid".into(), by);
        });
    }

    fn row(&self, model: &str, id: i64, change: impl FnOnce(&mut Map<String, Value>)) {
        change(self.state().rows.get_mut(model).expect("a model").get_mut(&id).expect("a record"));
    }

    /// A copy of a record with other values.
    pub fn create(&self, model: &str, like: i64, values: Value) -> i64 {
        let id = self.any(model) + 1;
        let now = written(self.now());
        let mut state = self.state();
        let rows = state.rows.get_mut(model).expect("a model");
        let mut row = rows[&like].clone();
        row.extend(values.as_object().cloned().expect("values"));
        row.extend([
            ("id".into(), id.into()),
            ("write_date".into(), now.clone().into()),
            ("create_date".into(), now.into()),
        ]);
        rows.insert(id, row);
        id
    }

    pub fn unlink(&self, model: &str, id: i64) {
        self.state().rows.get_mut(model).expect("a model").remove(&id);
    }

    /// Records of a company that the account may not see any more.
    pub fn hide(&self, model: &str, is_hidden: bool) {
        let mut state = self.state();
        state.hidden.retain(|hidden| hidden != model);
        if is_hidden {
            state.hidden.push(model.into());
        }
    }

    /// Hides a record by a rule, or shows it again.
    pub fn hide_record(&self, model: &str, id: i64, is_hidden: bool) {
        let record = (model.to_owned(), id);
        let mut state = self.state();
        if is_hidden {
            state.hidden_records.insert(record)
        } else {
            state.hidden_records.remove(&record)
        };
    }

    /// Companies whose records the account sees.
    pub fn see_companies(&self, companies: &[i64]) {
        self.state().companies = Some(companies.iter().copied().collect());
    }

    /// Notes a state in the outbox of the gateway, as an automation rule does; `None` for a deletion.
    pub fn note(&self, model: &str, id: i64, state: Option<&str>) {
        const OUTBOX: &str = "x_forebay_gw";
        let now = written(self.now());
        let mut odoo = self.state();
        let text = json!({"type": "char", "store": true});
        odoo.recorded["models"][OUTBOX] =
            json!({"fields": {"x_model": text, "x_record": {"type": "integer"}, "x_state": text}, "rows": []});
        let rows = odoo.rows.entry(OUTBOX.to_owned()).or_default();
        let number = rows.keys().next_back().map_or(1, |last| last + 1);
        let row = json!({
            "id": number, "x_model": model, "x_record": id, "x_state": state.map_or(json!(false), Value::from),
            "create_date": now, "write_date": now, "write_uid": [2, "Administrator"],
        });
        rows.insert(number, row.as_object().cloned().expect("a row"));
    }

    /// Takes a field away, as before a module is installed, or while it is upgraded; or gives it back.
    pub fn remove_field(&self, model: &str, field: &str, is_gone: bool) {
        let field = (model.to_owned(), field.to_owned());
        let mut state = self.state();
        if is_gone {
            state.absent_fields.insert(field)
        } else {
            state.absent_fields.remove(&field)
        };
    }

    /// Withdraws the right on the model that a field leads to, or grants it.
    pub fn deny_field(&self, model: &str, field: &str, is_denied: bool) {
        let field = (model.to_owned(), field.to_owned());
        let mut state = self.state();
        if is_denied {
            state.denied_fields.insert(field)
        } else {
            state.denied_fields.remove(&field)
        };
    }

    /// Puts a value into a record that cannot be expressed; `None` corrects it.
    pub fn spoil(&self, model: &str, id: i64, field: &str, bad: Option<Bad>) {
        let place = (model.to_owned(), id, field.to_owned());
        let mut state = self.state();
        match bad {
            Some(bad) => drop(state.bad.insert(place, bad)),
            None => drop(state.bad.remove(&place)),
        }
    }

    /// Changes a record as SQL does: without `write_date`.
    pub fn write_by_sql(&self, model: &str, id: i64, values: Value) {
        self.row(model, id, |row| row.extend(values.as_object().cloned().expect("values")));
    }

    /// A copy of all rows, to restore them later.
    pub fn back_up(&self) -> BTreeMap<String, BTreeMap<i64, Map<String, Value>>> {
        self.state().rows.clone()
    }

    pub fn restore(&self, rows: BTreeMap<String, BTreeMap<i64, Map<String, Value>>>) {
        self.state().rows = rows;
    }

    pub fn activate(&self, language: &'static str) {
        self.state().languages.insert(language);
    }

    pub fn set_language(&self, language: &'static str) {
        self.state().language = language;
    }

    /// Changes a text in one language, as a user in that language does.
    pub fn translate(&self, model: &str, id: i64, field: &str, text: (&'static str, &str)) {
        let place = (model.to_owned(), id, field.to_owned(), text.0);
        self.state().texts.insert(place, text.1.to_owned());
        self.write(model, id, json!({}));
    }

    pub fn set_key_expiry(&self, at: &str) {
        self.state().key_expires = Some(at.to_owned());
    }

    /// Adds a field to a model, as a contract of another version needs it; every row has this value.
    pub fn add_field(&self, model: &str, field: &str, (about, value): (Value, Value)) {
        let mut state = self.state();
        state.recorded["models"][model]["fields"][field] = about;
        for row in state.rows.get_mut(model).expect("a model").values_mut() {
            row.insert(field.to_owned(), value.clone());
        }
    }

    pub fn fault(&self, fault: Fault) {
        self.state().fault = fault;
    }

    pub fn make_administrator(&self) {
        self.state().is_administrator = true;
    }

    /// The calls since the last time, such as `mrp.production/search_read`.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }
}

fn written(at: i64) -> String {
    let text = jiff::Timestamp::from_second(at).expect("a time").to_string();
    text[..19].replace('T', " ")
}

/// One request: its head, and its body. `None` if the other side has closed.
pub fn request(stream: &mut impl Read) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut input = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(None);
        }
        input.extend_from_slice(&buffer[..read]);
        let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&input[..end]).into_owned();
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if input.len() >= end + 4 + length.unwrap_or(0) {
            return Ok(Some((head, input[end + 4..].to_vec())));
        }
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let Some((head, body)) = request(&mut stream)? else { return Ok(()) };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let (answer, wait, ahead) = {
        let mut state = state.lock().expect("lock");
        let wait = if let Fault::Slow(wait) = state.fault { wait } else { Duration::ZERO };
        (state.answer(&path, &head, &body), wait, jiff::SignedDuration::from_secs(state.ahead))
    };
    std::thread::sleep(wait);
    let Some(given) = answer else { return Ok(()) };
    let now = (jiff::Timestamp::now() + ahead).to_zoned(jiff::tz::TimeZone::UTC);
    let date = jiff::fmt::rfc2822::to_string(&now).expect("a date");
    let date = date.replace("+0000", "GMT");
    let Given { status, kind, text, more } = given;
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nServer: Werkzeug/3.1.3\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n{text}",
        text.len()
    )
}

/// An answer.
struct Given {
    status: u16,
    kind: &'static str,
    text: String,
    /// Further lines of the head.
    more: String,
}

fn given(status: u16, kind: &'static str, text: impl Into<String>) -> Option<Given> {
    Some(Given { status, kind, text: text.into(), more: String::new() })
}

/// Mark before a text that stands for a value which JSON does not have.
const RAW: &str = "\u{1}raw ";

fn json_text(status: u16, value: &Value) -> Option<Given> {
    let mut text = value.to_string();
    while let Some(start) = text.find("\"\\u0001raw ") {
        let end = start + 1 + text[start + 1..].find('"').expect("the end");
        let raw = text[start + 1 + "\\u0001raw ".len()..end].to_owned();
        text.replace_range(start..=end, &raw);
    }
    given(status, "application/json; charset=utf-8", text)
}

/// What Odoo says instead of a result: a recorded error, or a status with an error.
enum Refusal {
    Recorded(&'static str),
    Other(u16, Value),
}

impl From<&'static str> for Refusal {
    fn from(name: &'static str) -> Self {
        Self::Recorded(name)
    }
}

fn refusal(status: u16, name: &str, message: &str) -> Refusal {
    Refusal::Other(status, json!({"name": name, "message": message, "debug": "Traceback (most recent call last) …"}))
}

impl State {
    fn recorded_error(&self, name: &str) -> Option<Given> {
        let error = &self.recorded["errors"][name];
        let status = error["status"].as_u64().expect("a status") as u16;
        match error["html"].as_str() {
            Some(page) => given(status, "text/html; charset=utf-8", page),
            None => json_text(status, &error["json"]),
        }
    }

    fn answer(&mut self, path: &str, head: &str, body: &[u8]) -> Option<Given> {
        match self.fault.clone() {
            Fault::Closed => return None,
            Fault::Page(status) => return given(status, "text/html", "<html><body>somebody else</body></html>"),
            Fault::RetryAfter(status, after) => {
                self.calls.push(path.to_owned());
                let answer = given(status, "text/html", "<html><body>later</body></html>")?;
                return Some(Given { more: format!("Retry-After: {after}\r\n"), ..answer });
            }
            Fault::Error(name) if path != "/json/version" => return self.recorded_error(name),
            Fault::ErrorOf(model, name) if path.starts_with(&format!("/json/2/{model}/")) => {
                return self.recorded_error(name);
            }
            Fault::Legacy => return self.legacy(path, body),
            _ => {}
        }
        if path == "/json/version" {
            return json_text(200, &self.recorded["version"]["json"]);
        }
        if !head.contains(&format!("bearer {KEY}")) {
            return self.recorded_error("wrong key");
        }
        let Some(call) = path.strip_prefix("/json/2/") else { return self.recorded_error("wrong database") };
        let arguments: Value = serde_json::from_slice(body).expect("arguments in JSON");
        let call = call.to_owned();
        if let Err((status, error)) = signatures::judge_json2(&call, &arguments) {
            return json_text(status, &error);
        }
        match self.call(&call, &arguments) {
            Ok(value) => {
                let mut answer = json_text(200, &value)?;
                if let Fault::Garbled(model) = self.fault
                    && call == format!("{model}/search_read")
                {
                    answer.text.truncate(answer.text.len() / 2);
                }
                Some(answer)
            }
            Err(Refusal::Recorded(name)) => self.recorded_error(name),
            Err(Refusal::Other(status, error)) => json_text(status, &error),
        }
    }

    /// The same over `/jsonrpc`, where errors are answers.
    fn legacy(&mut self, path: &str, body: &[u8]) -> Option<Given> {
        if path != "/jsonrpc" {
            return given(404, "text/html", "<h1>Not Found</h1>");
        }
        let version = if self.version == 19 { 17 } else { self.version };
        let body: Value = serde_json::from_slice(body).expect("JSON");
        let arguments = &body["params"]["args"];
        let result = match body["params"]["method"].as_str().expect("a method") {
            "version" => Ok(json!({
                "server_version": format!("{version}.0"), "server_version_info": [version, 0, 0, "final", 0, ""],
            })),
            "authenticate" if arguments[1] == "gateway" && arguments[2] == KEY => Ok(json!(OWN_ID)),
            "authenticate" => Ok(json!(false)),
            _ => {
                assert_eq!(
                    (&arguments[0], &arguments[1], &arguments[2]),
                    (&json!("plant"), &json!(OWN_ID), &json!(KEY))
                );
                let call =
                    format!("{}/{}", arguments[3].as_str().expect("model"), arguments[4].as_str().expect("method"));
                match signatures::by_name(version, &call, &arguments[5], &arguments[6]) {
                    Ok(arguments) => self.call(&call, &arguments),
                    Err(error) => Err(Refusal::Other(200, error)),
                }
            }
        };
        let answer = match result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": 1, "result": result}),
            Err(refusal) => {
                let data = match refusal {
                    Refusal::Recorded(name) => self.recorded["errors"][name]["json"].clone(),
                    Refusal::Other(_, error) => error,
                };
                json!({"jsonrpc": "2.0", "id": 1, "error": {"code": 0, "message": "Odoo Server Error", "data": data}})
            }
        };
        json_text(200, &answer)
    }

    fn call(&mut self, call: &str, arguments: &Value) -> Result<Value, Refusal> {
        self.calls.push(call.to_owned());
        let (model, method) = call.split_once('/').expect("model and method");
        match call {
            "res.users/context_get" => return Ok(json!({"lang": self.language, "tz": false, "uid": OWN_ID})),
            "res.users/has_group" => return Ok(self.is_administrator.into()),
            "res.users/read" => {
                let companies = self.companies.clone().unwrap_or_else(|| BTreeSet::from([1]));
                return Ok(json!([{"id": OWN_ID, "company_ids": companies}]));
            }
            "res.lang/get_installed" => {
                return Ok(self.languages.iter().map(|code| json!([code, code])).collect());
            }
            "res.users.apikeys/search_read" => {
                let expires = self.key_expires.clone().map_or(json!(false), Value::from);
                return Ok(json!([{"id": 3, "create_date": "2020-01-01 00:00:00", "expiration_date": expires}]));
            }
            _ => {}
        }
        if self.recorded["models"].get(model).is_none() {
            return Err("no model".into());
        }
        self.check_context(&arguments["context"])?;
        match method {
            "fields_get" => Ok(self.described(model, arguments)),
            "has_access" => self.has_access(model, arguments),
            "check_access_rights" => Ok(false.into()),
            "search" => Ok(self.matching(model, arguments).into_iter().map(|row| row["id"].clone()).collect()),
            "search_count" => Ok(self.matching(model, arguments).len().into()),
            "search_read" => {
                let rows = self.matching(model, arguments);
                self.read(model, rows, arguments)
            }
            "read" => {
                let ids = self.existing(model, arguments);
                if let Some(id) = ids.iter().find(|id| self.is_hidden(model, **id)) {
                    let message = format!("Uh-oh! You are not allowed to access {model}({id},)");
                    return Err(refusal(403, "odoo.exceptions.AccessError", &message));
                }
                let rows = ids.iter().map(|id| self.rows[model][id].clone()).collect();
                self.read(model, rows, arguments)
            }
            "exists" => Ok(json!(self.existing(model, arguments))),
            _ => Err("not found".into()),
        }
    }

    /// Refuses a language that is not active and a company that the account does not have.
    fn check_context(&self, context: &Value) -> Result<(), Refusal> {
        let language = context["lang"].as_str().unwrap_or("en_US");
        if !self.languages.contains(language) && self.version >= 16 {
            return Err(refusal(422, "odoo.exceptions.UserError", &format!("Invalid language code: {language}")));
        }
        let wanted = context["allowed_company_ids"].as_array().into_iter().flatten().filter_map(Value::as_i64);
        if let Some(companies) = &self.companies
            && wanted.into_iter().any(|company| !companies.contains(&company))
        {
            let message = "Access to unauthorized or invalid companies.";
            return Err(refusal(403, "odoo.exceptions.AccessError", message));
        }
        Ok(())
    }

    fn described(&self, model: &str, arguments: &Value) -> Value {
        let about = &self.recorded["models"][model];
        let wanted = arguments["allfields"].as_array().expect("fields");
        let there = wanted.iter().filter_map(|field| {
            let field = field.as_str()?;
            let is_gone = self.absent_fields.contains(&(model.to_owned(), field.to_owned()));
            about["fields"].get(field).filter(|_| !is_gone).map(|about| (field.to_owned(), about.clone()))
        });
        Value::Object(there.collect())
    }

    fn has_access(&self, model: &str, arguments: &Value) -> Result<Value, Refusal> {
        let ids = arguments["ids"].as_array().expect("records");
        if arguments["operation"] == "write" {
            return Ok(false.into());
        }
        if self.existing(model, arguments).len() < ids.len() {
            return Err(refusal(404, "odoo.exceptions.MissingError", "Record does not exist or has been deleted."));
        }
        Ok(ids.iter().filter_map(Value::as_i64).all(|id| !self.is_hidden(model, id)).into())
    }

    /// The fields of rows that a read gives, or why it fails as a whole.
    fn read(&self, model: &str, rows: Vec<Map<String, Value>>, arguments: &Value) -> Result<Value, Refusal> {
        let fields: Vec<&str> =
            arguments["fields"].as_array().expect("fields").iter().filter_map(Value::as_str).collect();
        let of_model = |field: &str| (model.to_owned(), field.to_owned());
        let has_field = |field: &str| {
            ["write_date", "write_uid", "create_date"].contains(&field)
                || self.recorded["models"][model]["fields"].get(field).is_some()
                    && !self.absent_fields.contains(&of_model(field))
        };
        if let Some(field) = fields.iter().find(|field| !has_field(field)) {
            return Err(refusal(500, "builtins.ValueError", &format!("Invalid field '{field}' on '{model}'")));
        }
        if let Some(field) = fields.iter().find(|field| self.denied_fields.contains(&of_model(field))) {
            let message = format!("You are not allowed to access the records behind '{field}'");
            return Err(refusal(403, "odoo.exceptions.AccessError", &message));
        }
        let has_names = !arguments.as_object().expect("arguments").contains_key("load");
        let mut given = Vec::new();
        for mut row in rows {
            let id = row["id"].as_i64().expect("an id");
            row.retain(|field, _| field == "id" || fields.contains(&field.as_str()));
            for field in &fields {
                match self.bad.get(&(model.to_owned(), id, (*field).to_owned())) {
                    Some(Bad::Unreadable(message)) => {
                        return Err(refusal(500, "builtins.ValueError", message));
                    }
                    Some(Bad::Raw(raw)) => drop(row.insert((*field).to_owned(), format!("{RAW}{raw}").into())),
                    Some(Bad::Text(text)) => drop(row.insert((*field).to_owned(), (*text).into())),
                    None => {}
                }
                let language = arguments["context"]["lang"].as_str().unwrap_or_default();
                let text = self.texts.iter().find(|((of, number, name, spoken), _)| {
                    (of.as_str(), *number, name.as_str(), *spoken) == (model, id, *field, language)
                });
                if let Some((_, text)) = text {
                    row.insert((*field).to_owned(), text.clone().into());
                }
            }
            if !has_names {
                row.values_mut().filter(|value| is_link(value)).for_each(|value| *value = value[0].clone());
            }
            given.push(row);
        }
        Ok(json!(given))
    }

    /// The records among `ids` that exist.
    fn existing(&self, model: &str, arguments: &Value) -> Vec<i64> {
        let ids = arguments["ids"].as_array().expect("records").iter().filter_map(Value::as_i64);
        ids.filter(|id| self.rows.get(model).is_some_and(|rows| rows.contains_key(id))).collect()
    }

    /// Whether a record rule hides a record.
    fn is_hidden(&self, model: &str, id: i64) -> bool {
        let company = self.rows[model].get(&id).and_then(|row| row.get("company_id")).and_then(|link| link[0].as_i64());
        let is_elsewhere = match (&self.companies, company) {
            (Some(companies), Some(company)) => !companies.contains(&company),
            _ => false,
        };
        is_elsewhere
            || self.hidden.iter().any(|hidden| hidden == model)
            || self.hidden_records.contains(&(model.to_owned(), id))
    }

    fn matching(&self, model: &str, arguments: &Value) -> Vec<Map<String, Value>> {
        let domain = arguments["domain"].as_array().expect("a domain");
        let shows_archived = arguments["context"]["active_test"] == false;
        let limit = arguments["limit"].as_u64().unwrap_or(u64::MAX) as usize;
        let mut rows: Vec<_> = self.rows.get(model).into_iter().flat_map(BTreeMap::iter).collect();
        if arguments["order"] == "id desc" {
            rows.reverse();
        }
        let rows = rows.into_iter();
        rows.filter(|(id, _)| !self.is_hidden(model, **id))
            .map(|(_, row)| row)
            .filter(|row| shows_archived || row.get("active") != Some(&json!(false)))
            .filter(|row| domain.iter().all(|term| holds(row, term)))
            .take(limit)
            .cloned()
            .collect()
    }
}

fn is_link(value: &Value) -> bool {
    value.as_array().is_some_and(|pair| pair.len() == 2 && pair[0].is_number() && pair[1].is_string())
}

fn holds(row: &Map<String, Value>, term: &Value) -> bool {
    let field = term[0].as_str().expect("a field");
    assert!(!field.contains(['|', '?']), "{field} is no name that Odoo knows");
    let value = row.get(field).unwrap_or(&Value::Null);
    let value = if is_link(value) { &value[0] } else { value };
    let wanted = &term[2];
    match term[1].as_str().expect("an operator") {
        "=" => value == wanted,
        "!=" => value != wanted,
        ">" => value.as_i64() > wanted.as_i64(),
        ">=" => value.as_str() >= wanted.as_str(),
        "in" => wanted.as_array().expect("a list").contains(value),
        "not in" => !wanted.as_array().expect("a list").contains(value),
        other => panic!("{other} is not understood here"),
    }
}
