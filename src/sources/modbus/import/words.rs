//! Enumerations in cells of a list: `0=Off;1=On`.

/// The words of an enumeration, by number; `None` if the cell is none. A list that ends in an ellipsis is not whole, and is
/// none either.
pub(super) fn words(text: &str) -> Option<Vec<(i64, String)>> {
    let text = text.trim();
    if text.ends_with("...") || text.ends_with('…') || !text.contains(['=', ':']) {
        return None;
    }
    let parts: Vec<&str> = text.split([';', '\n', '|']).map(str::trim).filter(|part| !part.is_empty()).collect();
    let parts = if parts.len() > 1 { parts } else { split_commas(text) };
    let pair = |part: &&str| {
        let (number, word) = part.split_once(['=', ':'])?;
        let word = word.trim().trim_matches(['"', '\'']);
        let number = number.trim();
        let number = match number.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        (!word.is_empty() && word.len() <= 64).then(|| (number, word.to_owned()))
    };
    let mut words: Vec<(i64, String)> = parts.iter().map(pair).collect::<Option<_>>()?;
    let count = words.len();
    words.sort();
    words.dedup_by_key(|(number, _)| *number);
    (count >= 2 && words.len() == count).then_some(words)
}

/// Parts between commas: a comma begins a new part only where a number and a sign follow.
fn split_commas(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut from = 0;
    for (at, _) in text.match_indices([',', '/']) {
        let rest = text[at + 1..].trim_start();
        let digits =
            rest.len() - rest.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '-').len();
        if digits > 0 && rest[digits..].trim_start().starts_with(['=', ':']) {
            parts.push(text[from..at].trim());
            from = at + 1;
        }
    }
    parts.push(text[from..].trim());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enumerations_are_recognised_and_nothing_else() {
        let pairs = |list: &[(i64, &str)]| {
            Some(list.iter().map(|(number, word)| (*number, (*word).to_owned())).collect::<Vec<_>>())
        };
        assert_eq!(words("0=Off;1=On"), pairs(&[(0, "Off"), (1, "On")]));
        assert_eq!(words("0: idle, 1: running, ready"), pairs(&[(0, "idle"), (1, "running, ready")]));
        assert_eq!(words("0=Off\n1=On\n2=Fault"), pairs(&[(0, "Off"), (1, "On"), (2, "Fault")]));
        assert_eq!(words("0x00=A / 0x01=B"), None, "no sign that a slash parts hexadecimal numbers");
        for text in ["V", "", "0=Off", "0=Off;1=…", "0=Off;1=On;...", "a=b;c=d", "0=Off;0=On", "see 3: table"] {
            assert_eq!(words(text), None, "{text}");
        }
    }
}
