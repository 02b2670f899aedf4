//! The checks of a device table.

mod overlap;
mod point;
mod relation;

use super::device::{BAD_AFTER_DEFAULT, BITS_MAX, Device, Group, INTERVAL_DEFAULT, POINTS_MAX, REGISTERS_MAX};
use super::file::{File, FileGroup};
use super::problem::{Wrong, is_valid_name, named, with_name};
use crate::setting::{Document, Problem, Span};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A shorter interval would leave the bus no idle time between two polls.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);

impl Device {
    /// Reads and checks a table.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let document = Document::read(file).map_err(|problem| vec![problem])?;
        Self::read(&document)
    }

    /// Checks a table that was read before.
    pub fn read(document: &Document) -> Result<Self, Vec<Problem>> {
        match document.parse_all() {
            Ok(file) => check(file, document),
            Err(problems) => Err(problems.into_iter().map(|problem| with_name(document, problem)).collect()),
        }
    }
}

fn check(file: File, document: &Document) -> Result<Device, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut device = Device {
        groups: groups(&file.groups, document, &mut problems),
        registers_max: file.registers_max.unwrap_or(REGISTERS_MAX),
        bits_max: file.bits_max.unwrap_or(BITS_MAX),
        gap_max: file.gap_max,
        holes: file.holes.clone(),
        description: file.description.clone(),
        points: Vec::new(),
        first_address: file.first_address.0,
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
        let mut wrong = |wrong: Wrong| problems.push(named(document, index, &raw.name, &wrong));
        if let Some(first) = taken.get(raw.name.as_str()) {
            wrong(("name", format!("is taken by point {} of this table; names are unique", first + 1)));
        }
        taken.entry(&raw.name).or_insert(index);
        match point::point(raw, &file, &device) {
            Ok(point) => {
                places.push(index);
                device.points.push(point);
            }
            Err(found) => found.into_iter().for_each(wrong),
        }
    }
    for (place, wrong) in overlap::overlaps(&device) {
        let index = places[place];
        problems.push(named(document, index, &file.points[index].name, &wrong));
    }
    for (place, wrong) in relation::relate(&mut device, &file, &places) {
        let index = places[place];
        problems.push(named(document, index, &file.points[index].name, &wrong));
    }
    if problems.is_empty() { Ok(device) } else { Err(problems) }
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

#[cfg(test)]
mod tests {
    use super::super::super::value::Absent;
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
        check("address = 20\ntype = \"u24\"", "unknown value `u24`");
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
        check("address = 20\ncounter = { rate_max = 0 }", "rate_max: 0 is no rate");
        check("address = 20\ncounter = { rate = 5 }", "unknown field `rate`");
        check("address = 20\ncounter = 5", "expected true, or a table such as { rolls_at");
        check(
            "address = 20\ntype = \"u64\"\nabsent = [-1]",
            "-1 is impossible; the type holds 0 to 18446744073709551615",
        );
        check("address = 20\ntype = \"i16\"\nabsent = [0xFFFF]", "write \"0xFFFF\" for the bits, or -1");
        check("address = 20\nabsent = [true]", "expected a number, or a text such as \"0xFFFF\"");
        check("address = 20\ntype = \"text\"\nlength = 2\nencoding = \"runes\"", "\"runes\" is no character set");
        check("address = 20\npadding = \"#\"", "only a \"text\" has it");
        check("address = 20\norder = \"EFGHABCD\"", "for types of 64 bits");
        check("address = 20\norder = \"ACBD\"", "\"ACBD\" is no order");
        check("address = 20\nscale_from = \"sf\"", "point \"sf\" does not exist");
        check("address = 20\nscale_from = \"second\"", "needs another point itself");
        check("address = 20\ntype = \"f32\"\nscale_from = \"first\"", "only a whole number has a scale register");
        check(
            "address = 80\nscale_from = \"first\"",
            "71 registers, from 10 to 80, do not fit one request of at most 60",
        );
        check("address = 20\ntable = \"input\"\nadd = [{ point = \"first\" }]", "in another group or table");
        check("address = 20\ncounter = true\nadd = [{ point = \"first\" }]", "cannot count");
        check("address = 20\nadd = [{ point = \"first\", factor = 0 }]", "factor 0 of \"first\" is no factor");
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
    fn numbers_beyond_toml_are_written_as_texts() {
        let device = read(
            "[[point]]\nname = \"a\"\naddress = 1\ntype = \"u64\"\nabsent = [\"0xFFFFFFFFFFFFFFFF\"]\ncounter = { rolls_at = \"18446744073709551615\", rate_max = 2 }\nscale = 0.1\n",
        );
        let point = &device.expect("good").points[0];
        assert_eq!(point.absent, [Absent::Bits(u64::MAX)]);
        let rule = point.counter.expect("a counter");
        assert_eq!((rule.rolls_at, rule.rate_max), (i128::from(u64::MAX), Some(20.0)));
    }

    #[test]
    fn bits_of_one_register_are_no_overlap() {
        let device = read(
            "first_address = 1\n[[point]]\nname = \"a\"\naddress = 1\nbit = 0\n[[point]]\nname = \"b\"\naddress = 1\nbits = [4, 7]\n",
        );
        let device = device.expect("good");
        assert_eq!(device.points[0].address, 0, "lists that count from 1");
        assert_eq!(device.points[1].encoding.field, Some((4, 7)));
        let word = read("[[point]]\nname = \"word\"\naddress = 1\n[[point]]\nname = \"b\"\naddress = 1\nbit = 5\n");
        assert_eq!(word.expect("a word and its bits").points.len(), 2);
        let overlap = read(
            "[[point]]\nname = \"a\"\naddress = 1\nbit = 5\n[[point]]\nname = \"b\"\naddress = 1\nbits = [4, 7]\n",
        );
        assert!(overlap.is_err());
    }
}
