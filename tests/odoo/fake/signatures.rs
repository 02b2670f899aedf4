//! What each version of Odoo accepts: methods, names of parameters, and who may call them.
//!
//! 14 and 19 were tried on the real ones. 15, 17 and 18 are read from their sources (`odoo/models.py`, `odoo/api.py`);
//! 16 takes the names of 17 and the `load` of 15.

use serde_json::{Map, Value, json};

/// A method that this version has: the parameters, and whether it is called on records.
struct Method {
    parameters: &'static [&'static str],
    is_on_records: bool,
}

const fn of_model(parameters: &'static [&'static str]) -> Option<Method> {
    Some(Method { parameters, is_on_records: false })
}

const fn of_records(parameters: &'static [&'static str]) -> Option<Method> {
    Some(Method { parameters, is_on_records: true })
}

fn method(version: u32, name: &str) -> Option<Method> {
    match (name, version) {
        ("search", 14 | 15) => of_model(&["args", "offset", "limit", "order", "count"]),
        ("search", 16) => of_model(&["domain", "offset", "limit", "order", "count"]),
        ("search", _) => of_model(&["domain", "offset", "limit", "order"]),
        ("search_count", 14 | 15) => of_model(&["args"]),
        ("search_count", _) => of_model(&["domain", "limit"]),
        ("search_read", 14) => of_model(&["domain", "fields", "offset", "limit", "order"]),
        ("search_read", _) => of_model(&["domain", "fields", "offset", "limit", "order", "load"]),
        ("fields_get", _) => of_model(&["allfields", "attributes"]),
        ("read", _) => of_records(&["fields", "load"]),
        // From 19 on it is private.
        ("exists", 14..=18) => of_records(&[]),
        ("check_access_rights", _) => of_model(&["operation", "raise_exception"]),
        ("has_access", 18..) => of_records(&["operation"]),
        ("has_group", 14..=17) => of_model(&["group_ext_id"]),
        ("has_group", _) => of_records(&["group_ext_id"]),
        ("context_get" | "get_installed", _) => of_model(&[]),
        _ => None,
    }
}

/// The arguments of a call over `/jsonrpc`, by name, with the records as `ids`. The error is what Python says.
pub(super) fn by_name(version: u32, call: &str, given: &Value, named: &Value) -> Result<Value, Value> {
    let (model, name) = call.split_once('/').expect("model and method");
    let type_error = |message: String| json!({"name": "builtins.TypeError", "message": message});
    let method = method(version, name).ok_or_else(|| {
        json!({"name": "builtins.AttributeError", "message": format!("type object '{model}' has no attribute '{name}'")})
    })?;
    let mut given = given.as_array().expect("a list").iter();
    let mut arguments = Map::new();
    if method.is_on_records {
        let ids = given.next().ok_or_else(|| type_error("list index out of range".into()))?;
        arguments.insert("ids".into(), ids.clone());
    }
    for (value, parameter) in given.by_ref().zip(method.parameters) {
        arguments.insert((*parameter).into(), value.clone());
    }
    if given.next().is_some() {
        return Err(type_error(format!("{name}() takes fewer positional arguments")));
    }
    for (parameter, value) in named.as_object().expect("arguments by name") {
        let is_known = parameter == "context" || method.parameters.contains(&parameter.as_str());
        if !is_known || arguments.contains_key(parameter) {
            return Err(type_error(format!("{name}() got an unexpected keyword argument '{parameter}'")));
        }
        arguments.insert(parameter.clone(), value.clone());
    }
    if let Some(domain) = arguments.remove("args") {
        arguments.insert("domain".into(), domain);
    }
    Ok(Value::Object(arguments))
}

/// Judges a call over JSON-2; the error is a status with what Odoo says.
pub(super) fn judge_json2(call: &str, arguments: &Value) -> Result<(), (u16, Value)> {
    let (model, name) = call.split_once('/').expect("model and method");
    if name == "exists" {
        let message = format!("Private methods (such as '{model}.exists') cannot be called remotely.");
        return Err((403, json!({"name": "odoo.exceptions.AccessError", "message": message})));
    }
    let Some(method) = method(19, name) else {
        let message = format!("the method '{name}' does not exist on '{model}'");
        return Err((404, json!({"name": "werkzeug.exceptions.NotFound", "message": message})));
    };
    for parameter in arguments.as_object().expect("arguments by name").keys() {
        let is_known = match parameter.as_str() {
            "context" => true,
            "ids" => method.is_on_records,
            name => method.parameters.contains(&name),
        };
        if !is_known {
            let message = format!("{name}() got an unexpected argument '{parameter}'");
            return Err((422, json!({"name": "werkzeug.exceptions.UnprocessableEntity", "message": message})));
        }
    }
    Ok(())
}
