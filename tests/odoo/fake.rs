//! A small server that gives the recorded answers of a real Odoo 19, over rows that tests change.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const KEY: &str = "0123456789012345678901234567890123456789";
/// Number of the gateway's account.
pub const OWN_ID: i64 = 6;
const RECORDED: &str = include_str!("recorded.json");

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
    /// It closes without an answer.
    Closed,
    /// It answers so late.
    Slow(Duration),
    /// It speaks only the protocol of 14 to 18.
    Legacy,
}

#[derive(Debug)]
struct State {
    recorded: Value,
    rows: BTreeMap<String, BTreeMap<i64, Map<String, Value>>>,
    hidden: Vec<String>,
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
        let recorded: Value = serde_json::from_str(RECORDED).expect("recorded answers");
        let mut rows: BTreeMap<String, BTreeMap<i64, Map<String, Value>>> = BTreeMap::new();
        for (model, about) in recorded["models"].as_object().expect("models") {
            for row in about["rows"].as_array().expect("rows") {
                let row = row.as_object().cloned().expect("a row");
                rows.entry(model.clone()).or_default().insert(row["id"].as_i64().expect("an id"), row);
            }
        }
        let state = State {
            recorded,
            rows,
            hidden: Vec::new(),
            fault: Fault::None,
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
        odoo.write_at("mrp.production", any, json!({"state": "confirmed"}), odoo.now() - 3600);
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
    let Some((status, kind, text)) = answer else { return Ok(()) };
    let now = (jiff::Timestamp::now() + ahead).to_zoned(jiff::tz::TimeZone::UTC);
    let date = jiff::fmt::rfc2822::to_string(&now).expect("a date");
    let date = date.replace("+0000", "GMT");
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nServer: Werkzeug/3.1.3\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

type Given = (u16, &'static str, String);

fn json_text(status: u16, value: &Value) -> Option<Given> {
    Some((status, "application/json; charset=utf-8", value.to_string()))
}

impl State {
    fn recorded_error(&self, name: &str) -> Option<Given> {
        let error = &self.recorded["errors"][name];
        let status = error["status"].as_u64().expect("a status") as u16;
        match error["html"].as_str() {
            Some(page) => Some((status, "text/html; charset=utf-8", page.to_owned())),
            None => json_text(status, &error["json"]),
        }
    }

    fn answer(&mut self, path: &str, head: &str, body: &[u8]) -> Option<Given> {
        match self.fault.clone() {
            Fault::Closed => return None,
            Fault::Page(status) => {
                return Some((status, "text/html", "<html><body>somebody else</body></html>".into()));
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
        match self.call(&call, &arguments) {
            Ok(value) => json_text(200, &value),
            Err(name) => self.recorded_error(name),
        }
    }

    /// The same over `/jsonrpc`, where errors are answers.
    fn legacy(&mut self, path: &str, body: &[u8]) -> Option<Given> {
        if path != "/jsonrpc" {
            return Some((404, "text/html", "<h1>Not Found</h1>".into()));
        }
        let body: Value = serde_json::from_slice(body).expect("JSON");
        let arguments = &body["params"]["args"];
        let result = match body["params"]["method"].as_str().expect("a method") {
            "version" => Ok(json!({"server_version": "17.0", "server_version_info": [17, 0, 0, "final", 0, ""]})),
            "authenticate" if arguments[1] == "gateway" && arguments[2] == KEY => Ok(json!(OWN_ID)),
            "authenticate" => Ok(json!(false)),
            _ => {
                assert_eq!(
                    (&arguments[0], &arguments[1], &arguments[2]),
                    (&json!("plant"), &json!(OWN_ID), &json!(KEY))
                );
                // Before 18 an account could ask this about itself only.
                let is_about_itself = arguments[4] != "has_group" || arguments[5] == json!([]);
                assert!(is_about_itself, "{arguments}");
                let call =
                    format!("{}/{}", arguments[3].as_str().expect("model"), arguments[4].as_str().expect("method"));
                self.call(&call, &arguments[6])
            }
        };
        let answer = match result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": 1, "result": result}),
            Err(name) => {
                json!({"jsonrpc": "2.0", "id": 1, "error": {"code": 0, "message": "Odoo Server Error", "data": self.recorded["errors"][name]["json"]}})
            }
        };
        json_text(200, &answer)
    }

    fn call(&mut self, call: &str, arguments: &Value) -> Result<Value, &'static str> {
        self.calls.push(call.to_owned());
        let (model, method) = call.split_once('/').expect("model and method");
        match call {
            "res.users/context_get" => return Ok(json!({"lang": "en_US", "tz": false, "uid": OWN_ID})),
            "res.users/has_group" => return Ok(self.is_administrator.into()),
            _ => {}
        }
        let Some(about) = self.recorded["models"].get(model) else { return Err("no model") };
        match method {
            "fields_get" => {
                let wanted = arguments["allfields"].as_array().expect("fields");
                let there = wanted.iter().filter_map(|field| {
                    Some((field.as_str()?.to_owned(), about["fields"].get(field.as_str()?)?.clone()))
                });
                Ok(Value::Object(there.collect()))
            }
            "has_access" | "check_access_rights" => Ok(false.into()),
            "search" => Ok(self.matching(model, arguments).into_iter().map(|row| row["id"].clone()).collect()),
            "search_count" => Ok(self.matching(model, arguments).len().into()),
            "search_read" => {
                let fields = arguments["fields"].as_array().expect("fields");
                let mut rows = self.matching(model, arguments);
                for row in &mut rows {
                    let has_names = !arguments.as_object().expect("arguments").contains_key("load");
                    row.retain(|field, _| field == "id" || fields.contains(&json!(field)));
                    if !has_names {
                        row.values_mut().filter(|value| is_link(value)).for_each(|value| *value = value[0].clone());
                    }
                }
                Ok(json!(rows))
            }
            _ => Err("not found"),
        }
    }

    fn matching(&self, model: &str, arguments: &Value) -> Vec<Map<String, Value>> {
        if self.hidden.iter().any(|hidden| hidden == model) {
            return Vec::new();
        }
        let domain = arguments["domain"].as_array().expect("a domain");
        let shows_archived = arguments["context"]["active_test"] == false;
        let limit = arguments["limit"].as_u64().unwrap_or(u64::MAX) as usize;
        let rows = self.rows.get(model).into_iter().flat_map(BTreeMap::values);
        rows.filter(|row| shows_archived || row.get("active") != Some(&json!(false)))
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
