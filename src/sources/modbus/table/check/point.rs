//! The checks of one point of a device table.

use super::super::super::counter::CounterRule;
use super::super::super::value::{Absent, Encoding, Notation, Order, TextFormat, Type};
use super::super::device::{Deadband, Device, GROUP_DEFAULT, Point};
use super::super::file::{File, FileDeadband, FilePoint};
use super::super::problem::{Wrong, is_valid_name};
use std::collections::BTreeMap;

/// Checks a point without its relations to others.
pub(super) fn point(raw: &FilePoint, file: &File, device: &Device) -> Result<Point, Vec<Wrong>> {
    let mut problems: Vec<Wrong> = Vec::new();
    let mut wrong = |key: &'static str, message: String| problems.push((key, message));
    if !is_valid_name(&raw.name) {
        wrong("name", "is no name; 1 to 64 letters, digits, \"_\", \"-\" and \".\" are allowed".into());
    }
    let wanted = raw.group.as_deref().unwrap_or(match &device.groups[..] {
        [only] => &only.name,
        _ => GROUP_DEFAULT,
    });
    let group = device.groups.iter().position(|group| group.name == wanted);
    if group.is_none() {
        let known: Vec<_> = device.groups.iter().map(|group| format!("\"{}\"", group.name)).collect();
        wrong("group", format!("\"{wanted}\" is not declared; there are {}", known.join(", ")));
    }
    let is_bit = raw.table.is_bits() || raw.bit.is_some();
    let kind = raw.r#type.unwrap_or(if is_bit { Type::Bool } else { Type::U16 });
    for (key, message) in shape(raw, kind) {
        wrong(key, message);
    }
    let count = if raw.table.is_bits() { 1 } else { kind.registers().or(raw.length).unwrap_or(1) };
    let first = file.first_address.0;
    for (key, message) in place(raw, count, first, device) {
        wrong(key, message);
    }
    let encoding = encoding(raw, file, kind).unwrap_or_else(|(found, encoding)| {
        found.into_iter().for_each(|(key, message)| wrong(key, message));
        encoding
    });
    let is_plain = raw.scale == 1.0 && raw.offset == 0.0;
    let range = range(&encoding);
    for (key, message) in meaning(raw, &encoding, is_plain, range) {
        wrong(key, message);
    }
    let bits = encoding.field.map_or(kind.bits(), |(first, last)| u32::from(last.saturating_sub(first)) + 1);
    let absent = raw
        .absent
        .iter()
        .filter_map(|written| Absent::new(written, kind, bits, range).map_err(|message| wrong("absent", message)).ok());
    let absent = absent.collect();
    let deadband = deadband(raw, &encoding).unwrap_or_else(|message| {
        wrong("deadband", message);
        Deadband::Absolute(0.0)
    });
    let counter = counter(raw, kind).unwrap_or_else(|message| {
        wrong("counter", message);
        None
    });
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Point {
        name: raw.name.clone(),
        group: group.unwrap_or(0),
        table: raw.table,
        // Within bounds; otherwise there was a problem above.
        address: raw.address.saturating_sub(first),
        count,
        encoding,
        unit: raw.unit.clone(),
        deadband,
        counter,
        edge: raw.edge,
        absent,
        scale_from: None,
        terms: Vec::new(),
    })
}

/// The encoding of a point. The error has what is wrong with it, and the encoding without that.
fn encoding(raw: &FilePoint, file: &File, kind: Type) -> Result<Encoding, (Vec<Wrong>, Encoding)> {
    let mut problems: Vec<Wrong> = Vec::new();
    let mut words = BTreeMap::new();
    for (number, word) in &raw.values {
        match Notation::Text(number.clone()).whole() {
            Some(number) => drop(words.insert(number, word.clone())),
            None => problems.push(("values", format!("\"{number}\" is no whole number, such as 3 or \"0x1F\""))),
        }
    }
    let text = TextFormat::new(raw.encoding.as_deref(), raw.padding.as_deref()).unwrap_or_else(|wrong| {
        problems.push(wrong);
        TextFormat::default()
    });
    let field = raw.bit.map(|bit| (bit, bit)).or(raw.bits);
    let order = raw.order.unwrap_or(file.order);
    let encoding = Encoding { kind, order, field, scale: raw.scale, offset: raw.offset, words, text };
    if problems.is_empty() { Ok(encoding) } else { Err((problems, encoding)) }
}

/// Checks that one request can read the point, and that it lies in no hole.
fn place(raw: &FilePoint, count: u16, first: u16, device: &Device) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut wrong = |key: &'static str, message: String| found.push((key, message));
    let (start, end) =
        (i64::from(raw.address) - i64::from(first), i64::from(raw.address) - i64::from(first) + i64::from(count));
    if start < 0 || end > 65_536 {
        let most = 65_536 - i64::from(count) + i64::from(first);
        wrong("address", format!("{} is out of bounds; {first} to {most} are allowed", raw.address));
    }
    let most = if raw.table.is_bits() { device.bits_max } else { device.registers_max };
    if count > most {
        wrong("length", format!("{count} registers do not fit one request of at most {most}"));
    }
    let is_in = |from: u16, to: u16| start <= i64::from(to) && end > i64::from(from);
    if let Some(hole) = device.holes.iter().find(|hole| hole.table == raw.table && is_in(hole.from, hole.to)) {
        let (from, to) = (hole.from + first, hole.to + first);
        wrong("address", format!("{} lies in the hole from {from} to {to}, which must not be read", raw.address));
    }
    found
}

/// Checks type, table, bits and length against each other.
fn shape(raw: &FilePoint, kind: Type) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut wrong = |key: &'static str, message: String| found.push((key, message));
    if raw.table.is_bits() && kind != Type::Bool {
        wrong("type", format!("the table \"{}\" holds bits; its points are \"bool\"", raw.table.name()));
    }
    if raw.table.is_bits() && (raw.bit.is_some() || raw.bits.is_some()) {
        wrong("bit", format!("the table \"{}\" holds bits; only a register has more than one", raw.table.name()));
    }
    if !raw.table.is_bits() && kind == Type::Bool && raw.bit.is_none() {
        wrong("bit", "a \"bool\" of a register needs the number of its bit, 0 (lowest) to 15".into());
    }
    if raw.bit.is_some() && kind != Type::Bool {
        wrong("type", "one bit is a \"bool\"; use bits = [first, last] for a part of a number".into());
    }
    if raw.bit.is_some_and(|bit| bit > 15) {
        wrong("bit", format!("{} is out of bounds; 0 (lowest) to 15 are allowed", raw.bit.unwrap_or(0)));
    }
    if let Some((first, last)) = raw.bits.filter(|_| !raw.table.is_bits()) {
        let size = match kind {
            Type::U16 => 16,
            Type::U32 => 32,
            Type::U64 => 64,
            _ => 0,
        };
        if size == 0 {
            wrong("bits", "only \"u16\", \"u32\" and \"u64\" have parts".into());
        } else if first > last || last >= size {
            wrong(
                "bits",
                format!("[{first}, {last}] is no part of {size} bits; 0 (lowest) to {} are allowed", size - 1),
            );
        }
        if raw.bit.is_some() {
            wrong("bits", "bit and bits are given; one of them is meant".into());
        }
    }
    if matches!(raw.order, Some(Order::Eight(_))) && kind.bits() != 64 {
        wrong("order", "an order of eight letters is for types of 64 bits".into());
    }
    if kind != Type::Text {
        for (key, value) in [("encoding", &raw.encoding), ("padding", &raw.padding)] {
            if value.is_some() {
                wrong(key, "only a \"text\" has it".into());
            }
        }
    }
    match (kind, raw.length) {
        (Type::Text, None) => wrong("length", "a \"text\" needs its length in registers, two letters each".into()),
        (Type::Text, Some(0)) => wrong("length", "0 is not allowed; a text has at least one register".into()),
        (Type::Text, Some(_)) | (_, None) => {}
        (_, Some(length)) if kind.registers() == Some(length) => {}
        (_, Some(length)) => {
            let own = kind.registers().unwrap_or(1);
            wrong("length", format!("{length} is impossible: this type takes {own}; only \"text\" has a length"));
        }
    }
    found
}

/// The smallest and largest unscaled number of a point; `None` if it is no integer.
fn range(encoding: &Encoding) -> Option<(i128, i128)> {
    match (encoding.kind, encoding.field) {
        (Type::Bool, _) => Some((0, 1)),
        (_, Some((first, last))) if last >= first && last < 64 => Some((0, (1 << (last - first + 1)) - 1)),
        (kind, _) => kind.range(),
    }
}

/// Checks scale, words and edges against the type.
fn meaning(raw: &FilePoint, encoding: &Encoding, is_plain: bool, range: Option<(i128, i128)>) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut wrong = |key: &'static str, message: String| found.push((key, message));
    let kind = encoding.kind;
    if raw.scale == 0.0 || !raw.scale.is_finite() {
        wrong("scale", format!("{} is not allowed: every value would be the same, or none", raw.scale));
    }
    if !raw.offset.is_finite() {
        wrong("offset", format!("{} is no number", raw.offset));
    }
    if !is_plain && (matches!(kind, Type::Bool | Type::Text) || !encoding.words.is_empty()) {
        wrong("scale", "bits, texts and words of an enumeration have no scale and no offset".into());
    }
    match range {
        None if !encoding.words.is_empty() => wrong("values", "only whole numbers and bits have words".into()),
        None => {}
        Some((least, most)) => {
            let is_out = |number: &i128| !(least..=most).contains(number);
            if let Some(number) = encoding.words.keys().find(|number| is_out(number)) {
                wrong("values", format!("{number} is impossible; the type holds {least} to {most}"));
            }
        }
    }
    if raw.edge.is_some() && (kind != Type::Bool || !encoding.words.is_empty()) {
        wrong("edge", "only a \"bool\" without words has edges".into());
    }
    found
}

fn deadband(raw: &FilePoint, encoding: &Encoding) -> Result<Deadband, String> {
    let Some(wanted) = &raw.deadband else { return Ok(Deadband::Absolute(0.0)) };
    if matches!(encoding.kind, Type::Bool | Type::Text) || !encoding.words.is_empty() {
        return Err("only numbers have a deadband".into());
    }
    let is_good = |number: f64| number.is_finite() && number >= 0.0;
    match wanted {
        FileDeadband::Number(number) if is_good(*number) => Ok(Deadband::Absolute(*number)),
        FileDeadband::Number(number) => Err(format!("{number} is no distance")),
        FileDeadband::Share(text) => {
            let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
            let good = number.filter(|number| is_good(*number)).map(|number| Deadband::Relative(number / 100.0));
            good.ok_or_else(|| format!("\"{text}\" is no deadband; expected a number, or a share such as \"2%\""))
        }
    }
}

fn counter(raw: &FilePoint, kind: Type) -> Result<Option<CounterRule>, String> {
    let Some(rule) = &raw.counter.0 else { return Ok(None) };
    let Some((least, most)) = kind.range().filter(|_| raw.bits.is_none() && raw.values.is_empty()) else {
        return Err("only a whole number without words counts".into());
    };
    let rolls_at = match &rule.rolls_at {
        Some(written) => written.whole().ok_or_else(|| format!("{written} is no whole number"))?,
        None if least < 0 => {
            return Err("a signed counter needs the number at which it rolls over: { rolls_at = 1000000 }".into());
        }
        None => most + 1,
    };
    if rolls_at < 2 || rolls_at > most + 1 {
        return Err(format!(
            "{rolls_at} is impossible; the type counts to {most} and can roll over at 2 to {}",
            most + 1
        ));
    }
    // In the table it is in the unit of measure, here in counts.
    let rate_max = match rule.rate_max {
        Some(rate) if rate.is_finite() && rate > 0.0 => Some(rate / raw.scale.abs()),
        Some(rate) => {
            return Err(format!("rate_max: {rate} is no rate; expected the most counts in a second, such as 5"));
        }
        None => None,
    };
    Ok(Some(CounterRule { rolls_at, rate_max }))
}
