//! The checks of a device table.

use super::super::plan::{BITS_MAX, REGISTERS_MAX};
use super::super::value::{Encoding, Type};
use super::{
    BAD_AFTER_DEFAULT, Deadband, Device, File, FileCounter, FileDeadband, FileGroup, FilePoint, GROUP_DEFAULT, Group,
    INTERVAL_DEFAULT, Point,
};
use crate::setting::{Document, Problem, Span};
use std::collections::BTreeMap;
use std::time::Duration;

/// A shorter interval would leave the bus no idle time between two polls.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);
/// Points of a device: four times as many as some thirty requests of the largest size can read.
const POINTS_MAX: usize = 10_000;

/// A key of a point, and the reason why its value is wrong.
type Wrong = (&'static str, String);

pub(super) fn check(file: File, document: &Document) -> Result<Device, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut device = Device {
        groups: groups(&file.groups, document, &mut problems),
        registers_max: file.registers_max.unwrap_or(REGISTERS_MAX),
        bits_max: file.bits_max.unwrap_or(BITS_MAX),
        gap_max: file.gap_max,
        holes: file.holes.clone(),
        description: file.description.clone(),
        points: Vec::new(),
    };
    for (key, value, most) in
        [("registers_max", device.registers_max, REGISTERS_MAX), ("bits_max", device.bits_max, BITS_MAX)]
    {
        if !(1..=most).contains(&value) {
            problems.push(document.problem(key, format!("{value} is out of bounds; 1 to {most} are allowed")));
        }
    }
    for (index, hole) in device.holes.iter_mut().enumerate() {
        if hole.from < file.first_address.0 || hole.to < hole.from {
            let message = format!("{} to {} is no range; from is at most to", hole.from, hole.to);
            problems.push(document.problem(format!("hole[{index}]"), message));
            continue;
        }
        hole.from -= file.first_address.0;
        hole.to -= file.first_address.0;
    }
    if file.points.is_empty() {
        problems.push(document.problem("point", "there is none: nothing would be read"));
    }
    if file.points.len() > POINTS_MAX {
        let message = format!("{} are too many; {POINTS_MAX} are allowed", file.points.len());
        return Err(vec![document.problem("point", message)]);
    }
    // Index of the first point with each name.
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    let mut places = Vec::new();
    for (index, raw) in file.points.iter().enumerate() {
        let mut wrong = |(key, message): Wrong| problems.push(named(document, index, &raw.name, key, &message));
        if let Some(first) = taken.get(raw.name.as_str()) {
            wrong(("name", format!("is taken by point {} of this table; names are unique", first + 1)));
        }
        taken.entry(&raw.name).or_insert(index);
        match point(raw, &file, &device) {
            Ok(point) => {
                places.push(index);
                device.points.push(point);
            }
            Err(found) => found.into_iter().for_each(wrong),
        }
    }
    overlaps(&device, &places, document, &mut problems);
    if problems.is_empty() { Ok(device) } else { Err(problems) }
}

/// A problem of a point; the message begins with the point's name.
fn named(document: &Document, index: usize, name: &str, key: &str, message: &str) -> Problem {
    let key = if key.is_empty() { format!("point[{index}]") } else { format!("point[{index}].{key}") };
    document.problem(key, format!("point \"{name}\": {message}"))
}

/// Adds the name of the point to a problem that the TOML parser found.
pub(super) fn with_name(document: &Document, problem: Problem) -> Problem {
    let place = problem.key.strip_prefix("point[").and_then(|rest| rest.split(']').next());
    let name = place.and_then(|index| document.value(&format!("point[{index}].name")));
    match name {
        Some(name) => Problem { message: format!("point {name}: {}", problem.message), ..problem },
        None => problem,
    }
}

fn is_valid_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(is_good)
}

fn groups(found: &BTreeMap<String, FileGroup>, document: &Document, problems: &mut Vec<Problem>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (name, raw) in found {
        let mut wrong =
            |key: &str, message: String| problems.push(document.problem(format!("group.{name}{key}"), message));
        if !is_valid_name(name) {
            wrong("", format!("\"{name}\" is no name; 1 to 64 letters, digits, \"_\", \"-\" and \".\" are allowed"));
        }
        let span = |span: Option<Span>, default| span.map_or(default, |span| span.0);
        let group = Group {
            name: name.clone(),
            interval: span(raw.interval, INTERVAL_DEFAULT),
            report: raw.report,
            min: span(raw.min, Duration::ZERO),
            max: raw.max.map(|span| span.0),
            bad_after: span(raw.bad_after, BAD_AFTER_DEFAULT),
        };
        if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&group.interval) {
            wrong(".interval", format!("{} is out of bounds; 10ms to 1d are allowed", Span(group.interval)));
        }
        if let Some(max) = group.max.filter(|max| *max < group.min || max.is_zero()) {
            wrong(".max", format!("{} is shorter than min, {}", Span(max), Span(group.min)));
        }
        groups.push(group);
    }
    if groups.is_empty() {
        groups.push(Group::default());
    }
    groups
}

fn point(raw: &FilePoint, file: &File, device: &Device) -> Result<Point, Vec<Wrong>> {
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
    let field = raw.bit.map(|bit| (bit, bit)).or(raw.bits);
    let mut words = BTreeMap::new();
    for (number, word) in &raw.values {
        match whole(number) {
            Some(number) => drop(words.insert(number, word.clone())),
            None => wrong("values", format!("\"{number}\" is no whole number, such as 3 or \"0x1F\"")),
        }
    }
    let is_plain = raw.scale == 1.0 && raw.offset == 0.0;
    let encoding =
        Encoding { kind, order: raw.order.unwrap_or(file.order), field, scale: raw.scale, offset: raw.offset, words };
    for (key, message) in meaning(raw, &encoding, is_plain) {
        wrong(key, message);
    }
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
        absent: raw.absent.iter().map(|number| i128::from(*number)).collect(),
    })
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

/// Checks scale, words, edges and absent values against the type.
fn meaning(raw: &FilePoint, encoding: &Encoding, is_plain: bool) -> Vec<Wrong> {
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
    let range = match (kind, encoding.field) {
        (Type::Bool, _) => Some((0, 1)),
        (_, Some((first, last))) if last >= first && last < 64 => Some((0, (1 << (last - first + 1)) - 1)),
        _ => kind.range(),
    };
    match range {
        None if !encoding.words.is_empty() => wrong("values", "only whole numbers and bits have words".into()),
        None if !raw.absent.is_empty() => wrong("absent", "only whole numbers can have absent values".into()),
        None => {}
        Some((least, most)) => {
            let is_out = |number: &i128| !(least..=most).contains(number);
            if let Some(number) = encoding.words.keys().find(|number| is_out(number)) {
                wrong("values", format!("{number} is impossible; the type holds {least} to {most}"));
            }
            if let Some(number) = raw.absent.iter().find(|number| is_out(&i128::from(**number))) {
                wrong("absent", format!("{number} is impossible; the type holds {least} to {most}"));
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

fn counter(raw: &FilePoint, kind: Type) -> Result<Option<i128>, String> {
    let rolls_at = match raw.counter {
        FileCounter::Is(false) => return Ok(None),
        FileCounter::Is(true) => None,
        FileCounter::RollsAt { rolls_at } => Some(i128::from(rolls_at)),
    };
    let Some((least, most)) = kind.range().filter(|_| raw.bits.is_none() && raw.values.is_empty()) else {
        return Err("only a whole number without words counts".into());
    };
    if least < 0 && rolls_at.is_none() {
        return Err("a signed counter needs the number at which it rolls over: { rolls_at = 1000000 }".into());
    }
    let rolls_at = rolls_at.unwrap_or(most + 1);
    if rolls_at < 2 || rolls_at > most + 1 {
        return Err(format!(
            "{rolls_at} is impossible; the type counts to {most} and can roll over at 2 to {}",
            most + 1
        ));
    }
    Ok(Some(rolls_at))
}

/// Reports points that share registers, unless they are different bits of one register.
fn overlaps(device: &Device, places: &[usize], document: &Document, problems: &mut Vec<Problem>) {
    let mut order: Vec<usize> = (0..device.points.len()).collect();
    let place = |index: usize| (device.points[index].table, device.points[index].address);
    order.sort_by_key(|index| place(*index));
    let end = |point: &Point| u32::from(point.address) + u32::from(point.count);
    for (at, second) in order.iter().enumerate() {
        let later = &device.points[*second];
        for first in order[..at].iter().rev() {
            let earlier = &device.points[*first];
            if earlier.table != later.table
                || u32::from(later.address) >= u32::from(earlier.address) + u32::from(REGISTERS_MAX)
            {
                break;
            }
            let is_apart = match (earlier.encoding.field, later.encoding.field) {
                (Some(a), Some(b)) if earlier.address == later.address => a.1 < b.0 || b.1 < a.0,
                _ => false,
            };
            if end(earlier) > u32::from(later.address) && !is_apart {
                // The problem is reported for the later point in the file.
                let (index, other) = if second > first { (*second, earlier) } else { (*first, later) };
                let message = format!(
                    "overlaps point \"{}\" ({} {} to {})",
                    other.name,
                    other.table.name(),
                    other.address,
                    end(other) - 1
                );
                problems.push(named(document, places[index], &device.points[index].name, "address", &message));
            }
        }
    }
}

/// Parses an integer in decimal or hexadecimal notation.
fn whole(text: &str) -> Option<i128> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(hex) => i128::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(text: &str) -> Result<Device, Vec<String>> {
        let document = Document::new(Path::new("meter.toml"), text.to_owned());
        Device::read(&document).map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_bad_table_names_file_line_and_point() {
        let check = |point: &str, wanted: &str| {
            let text = format!(
                "registers_max = 60\n[[hole]]\ntable = \"holding\"\nfrom = 90\nto = 99\n[[point]]\nname = \"first\"\naddress = 10\ntype = \"u32\"\n[[point]]\nname = \"second\"\n{point}\n"
            );
            let problems = read(&text).expect_err(wanted);
            let found = problems.iter().any(|problem| {
                problem.starts_with("meter.toml:1") && problem.contains("\"second\"") && problem.contains(wanted)
            });
            assert!(found, "{wanted}: {problems:?}");
        };
        check("address = 11", "overlaps point \"first\" (holding 10 to 11)");
        check("address = 9\ntype = \"u32\"", "overlaps point \"first\"");
        check("address = 65535\ntype = \"f32\"", "65535 is out of bounds; 0 to 65534");
        check("address = 65536", "65536");
        check("address = 20\ntype = \"u24\"", "unknown variant `u24`");
        check("address = 20\nadress = 21", "unknown field `adress`");
        check("address = 89\ntype = \"u32\"", "lies in the hole from 90 to 99");
        check("address = 20\ngroup = \"fast\"", "\"fast\" is not declared; there are \"values\"");
        check("address = 20\ntype = \"bool\"", "needs the number of its bit");
        check("address = 20\nbit = 16", "16 is out of bounds");
        check("address = 20\ntable = \"coil\"\ntype = \"u16\"", "holds bits");
        check("address = 20\ntype = \"text\"", "needs its length");
        check("address = 20\ntype = \"text\"\nlength = 61", "61 registers do not fit one request of at most 60");
        check("address = 20\nscale = 0", "every value would be the same");
        check("address = 20\nbits = [8, 4]", "[8, 4] is no part of 16 bits");
        check("address = 20\nvalues = { 70000 = \"x\" }", "70000 is impossible; the type holds 0 to 65535");
        check("address = 20\nvalues = { on = \"x\" }", "\"on\" is no whole number");
        check("address = 20\ndeadband = \"much\"", "\"much\" is no deadband");
        check("address = 20\ntype = \"f32\"\ncounter = true", "only a whole number");
        check("address = 20\ncounter = { rolls_at = 70000 }", "70000 is impossible");
        check("address = 20\nedge = \"both\"", "only a \"bool\"");
        check("address = 20\nlength = 3", "3 is impossible: this type takes 1");
        let twice =
            read("[[point]]\nname = \"a\"\naddress = 1\n[[point]]\nname = \"a\"\naddress = 2\n").expect_err("taken");
        assert!(twice[0].contains("meter.toml:5") && twice[0].contains("is taken by point 1"), "{twice:?}");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let problems = read(
            "[[point]]\nname = \"a\"\naddress = 1\nscale = 0\n[[point]]\nname = \"b\"\naddress = 1\n[[point]]\nname = \"c\"\naddress = 9\nbit = 99\n",
        );
        assert_eq!(problems.expect_err("two").len(), 2);
    }

    #[test]
    fn bits_of_one_register_are_no_overlap() {
        let device = read(
            "first_address = 1\n[[point]]\nname = \"a\"\naddress = 1\nbit = 0\n[[point]]\nname = \"b\"\naddress = 1\nbits = [4, 7]\n",
        );
        let device = device.expect("good");
        assert_eq!(device.points[0].address, 0, "lists that count from 1");
        assert_eq!(device.points[1].encoding.field, Some((4, 7)));
        let overlap = read(
            "[[point]]\nname = \"a\"\naddress = 1\nbit = 5\n[[point]]\nname = \"b\"\naddress = 1\nbits = [4, 7]\n",
        );
        assert!(overlap.is_err());
    }
}
