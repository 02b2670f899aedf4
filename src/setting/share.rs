//! A settings file without secrets, for the support bundle.
//!
//! Promise: the output contains no comment, and no value of a key that may be a secret unless it is the path of one.

use super::Document;
use toml::Value;

/// Words in the keys of secrets.
const SECRET_WORDS: [&str; 6] = ["password", "passphrase", "token", "key", "secret", "credential"];
const MASKED: &str = "(masked)";

impl Document {
    /// Returns the file without comments and possible secrets; `None` if it is no TOML. `is_path` decides whether a value
    /// is the path of a secret and not the secret itself.
    pub fn shareable(&self, is_path: &dyn Fn(&str) -> bool) -> Option<String> {
        let mut root: toml::Table = self.text().parse().ok()?;
        for (key, value) in &mut root {
            mask(key, value, false, is_path);
        }
        toml::to_string(&root).ok()
    }
}

fn mask(key: &str, value: &mut Value, is_inside: bool, is_path: &dyn Fn(&str) -> bool) {
    let is_secret = is_inside || SECRET_WORDS.iter().any(|word| key.contains(word));
    match value {
        Value::Table(table) => table.iter_mut().for_each(|(key, value)| mask(key, value, is_secret, is_path)),
        Value::Array(items) => items.iter_mut().for_each(|item| mask(key, item, is_inside, is_path)),
        Value::String(text) if is_secret && !is_path(text) => *text = MASKED.into(),
        Value::String(text) => *text = without_user(text),
        Value::Integer(_) | Value::Float(_) if is_secret => *value = Value::String(MASKED.into()),
        _ => {}
    }
}

/// Removes user and password from a URL.
fn without_user(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |end| rest.split_at(end));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{MASKED}@{host}{path}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_may_be_secret_is_masked_wherever_it_stands() {
        let text = r#"
            # the password is s3cret-1
            site = "plant-01"
            mask_key = "s3cret-2"
            [[destination]]
            url = "mqtts://gw:s3cret-3@central.example.com:8883/x"
            password_file = "central.password"
            password = "s3cret-4"
            tls = { key = "gw.key", cert = "gw.pem", passphrase = "s3cret-5" }
            token = ["s3cret-6", { deep = "s3cret-7" }]
            pin_secret = 48151623
        "#;
        let document = Document::new(Path::new("a.toml"), text.into());
        let shown = document.shareable(&|text| text.starts_with("central.") || text == "gw.key").expect("TOML");
        assert!(!shown.contains("s3cret") && !shown.contains("48151623"), "{shown}");
        for kept in ["plant-01", "central.password", "gw.key", "gw.pem", "mqtts://(masked)@central.example.com:8883/x"]
        {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        assert_eq!(Document::new(Path::new("a.toml"), "a = \"s3cret".into()).shareable(&|_| true), None);
    }
}
